// The backward pass of a scan, one direction or both of them at once: see scan.h.
//
// A direction walks over its tiles in the opposite order of its forward pass, chunk by chunk. The
// forward pass saved the state before each chunk. First the states before every kSweep tokens of
// the chunk are rebuilt into shared memory; then, from the chunk's last tokens to its first, the
// decays and states of kSweep tokens are rebuilt in registers and the gradients swept back over
// them. So each decay is computed twice, and no state of a token is ever written to memory.
//
// The gradients of the rows that channels share (dt, B, C) are summed over a block's channels and
// then added to those of other blocks: atomically, or by a later sum over a part for each block.

#pragma once

#include "scan_tile.h"

namespace mmvim::cuda {

// Where gradients of (B, L, groups, columns) are summed up. Part i begins i * part floats further.
struct RowSums {
  float* data = nullptr;
  int64_t sequence = 0, token = 0, group = 0, part = 0;
};

struct ScanGrads {
  Rows u;
  Rows delta;  // not given where rank > 0, or not wanted
  RowSums dt, B, C;
  // (B, states + rank + 2, groups * channels): those of A, dt_weight, D and bias, in this order.
  float* parameters = nullptr;
};

struct BackwardProblem : Problem {
  ScanGrads grads[2];
  Rows grad_out;
  Rows grad_z;                             // no data: not wanted
  const float* grad_last_state = nullptr;  // (B, groups * channels, states) of the only scan
  bool atomic = false;                     // all blocks of a group add to part 0
};

template <class Shape>
struct ScanBackward {
  using T = typename Shape::T;
  using Params = BackwardProblem;
  static constexpr int kMostThreads = 2 * Shape::kThreads;
  // At once on a multiprocessor, as far as registers are concerned: more would not fit unspilled.
  static constexpr int kBlocks = Shape::kOwn * sizeof(T) > 4 ? 2 : 3;
  static constexpr int kSweep = 8;  // tokens that are rebuilt in registers
  static constexpr int kShare = 4;  // tokens between two sums over the channels
  static constexpr int kSweeps = kTile / kSweep;
  static constexpr int kOwn = Shape::kOwn;
  static constexpr int kChannels = Shape::kChannels;

  struct Registers {
    float A[kOwn];                               // times log2(e)
    float before[kOwn];                          // the state before the sweep's tokens
    float h[kSweep][kOwn], decay[kSweep][kOwn];  // of the sweep's tokens
    // The gradient of the state after a token, to be multiplied by the decay of the next token
    // where it is added to, in one rounding: a product with a decay within 1e-7 of one would be
    // rounded the same way at every token.
    float grad[kOwn], later[kOwn];
    float grad_A[kOwn];
    float grad_D, grad_bias;  // of channel k, from the tokens this thread sums up
    RowsAhead<Shape> ahead;   // of the next tile
    // Where the thread begins to copy the first tile of each tensor.
    const char *u_start, *z_start, *grad_out_start;
    // Where the grads of token 0 go: of channel k, and of the rows that channels share.
    char* grad_u;
    float *grad_dt, *grad_B, *grad_C;
  };

  struct Layout : TileLayout {
    int states;       // (tiles a chunk * kSweeps, kOwn, kThreads): before each sweep
    int grad_y;       // (32, kChannels); a token's y takes its place
    int slope;        // (32, kChannels); a token's gradient of delta takes its place
    int shares;       // (kShare, 2, kThreads, kOwn): grads of B and C
    int sums;         // (kShare, 3, kThreads): grads of dt and of dt u, y
    int grad_weight;  // (rank_fours, kChannels, 4)

    MMVIM_HD explicit Layout(const Params& p) : TileLayout(tile_layout<Shape>(p, kRawTiles)) {
      const int tiles = p.tiles_a_chunk < p.tiles ? p.tiles_a_chunk : p.tiles;
      states = take(4 * tiles * kSweeps * kOwn * Shape::kThreads);
      grad_y = take(4 * kTile * kChannels);
      slope = take(4 * kTile * kChannels);
      shares = take(4 * kShare * 2 * Shape::kThreads * kOwn);
      sums = take(4 * kShare * 3 * Shape::kThreads);
      grad_weight = take(16 * rank_fours * kChannels);
    }
  };
  enum RawTile { kU, kDelta, kZ, kGradOut, kRawTiles };

  static void fit(Params& p) {
    fit_copies<Shape>(p);
    p.grad_out.fit(kChannels * static_cast<int>(sizeof(T)));
  }
  static MMVIM_HD int64_t blocks(const Params& p) { return Block<Shape>::number(p); }
  static MMVIM_HD int threads(const Params& p) { return p.directions * Shape::kThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return p.directions * Layout(p).bytes; }

  // A tile's turn: while it is worked on, the next one is copied.
  struct Visit {
    int step, copy, next;  // next: the step after, or -1
  };

  // Calls `each` with one phase after the other.
  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Layout layout(p);
    const Pass pass = {p, Block<Shape>(p, index), layout, shared};
    const int last_chunk = (p.tiles - 1) / p.tiles_a_chunk;
    each([&](int tid, Registers& own) {
      pass.begin(Thread<Shape>(tid), own, last_chunk * p.tiles_a_chunk);
    });
    int copy = 0;
    for (int chunk = last_chunk; chunk >= 0; --chunk) {
      const int first = chunk * p.tiles_a_chunk;
      const int end = first + p.tiles_a_chunk < p.tiles ? first + p.tiles_a_chunk : p.tiles;
      for (int step = first; step < end; ++step) {
        const Visit visit = {step, copy++, step + 1 < end ? step + 1 : end - 1};
        each([&](int tid, Registers& own) { pass.convert(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) { pass.prepare(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) {
          pass.rebuild(Thread<Shape>(tid), own, visit, chunk, step - first);
        });
      }
      for (int step = end - 1; step >= first; --step) {
        const int next_chunk = chunk > 0 ? first - p.tiles_a_chunk : -1;
        const Visit visit = {step, copy++, step > first ? step - 1 : next_chunk};
        each([&](int tid, Registers& own) { pass.convert(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) {
          pass.prepare_to_sweep(Thread<Shape>(tid), own, visit);
        });
        for (int sweep = kSweeps - 1; sweep >= 0; --sweep) {
          const int place = (step - first) * kSweeps + sweep;
          each([&](int tid, Registers& own) {
            pass.rebuild_tokens(Thread<Shape>(tid), own, sweep, place);
            pass.template sweep<kShare>(Thread<Shape>(tid), own, sweep);
          });
          each([&](int tid, Registers& own) {
            pass.share(Thread<Shape>(tid), own, visit, sweep * kSweep + kShare);
          });
          each([&](int tid, Registers& own) {
            pass.template sweep<0>(Thread<Shape>(tid), own, sweep);
          });
          each([&](int tid, Registers& own) {
            pass.share(Thread<Shape>(tid), own, visit, sweep * kSweep);
          });
        }
        if (meet(p, p.tiles - 1 - step)) {
          each([&](int tid, Registers& own) { pass.finish(Thread<Shape>(tid), own, visit, 0); });
          each([&](int tid, Registers& own) { pass.finish(Thread<Shape>(tid), own, visit, 1); });
        } else {
          each([&](int tid, Registers& own) {
            const Thread<Shape> at(tid);
            pass.finish(at, own, visit, at.direction);
          });
        }
      }
    }
    each([&](int tid, Registers& own) { pass.leave(Thread<Shape>(tid), own); });
    each([&](int tid, Registers& own) { pass.end(Thread<Shape>(tid), own); });
  }

  struct Pass {
    const Params& p;
    const Block<Shape> block;
    const Layout& layout;
    char* shared;

    MMVIM_HD Space<Shape> space(const Thread<Shape>& at) const {
      return {layout, shared + at.direction * layout.bytes};
    }
    MMVIM_HD bool given(const Thread<Shape>& at, int i) const {
      return at.k < block.count && at.s * kOwn + i < p.states;
    }

    MMVIM_HD void begin(const Thread<Shape>& at, Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      const int64_t channel = block.channel(p) + at.k;
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int n = at.s * kOwn + i;
        own.A[i] = given(at, i) ? kLog2e * scan.A[channel * p.states + n] : 0.0f;
        own.grad[i] = given(at, i) && p.grad_last_state && at.direction == 0
                          ? p.grad_last_state[(block.b * p.all_channels() + channel) * p.states + n]
                          : 0.0f;
        own.later[i] = 1.0f;
        own.grad_A[i] = 0.0f;
      }
      own.grad_D = own.grad_bias = 0.0f;
      const Space<Shape> space = this->space(at);
      own.ahead.begin(p, scan, block, at.lane);
      own.u_start = own_tile_start(p, scan.u, block, at.lane);
      if (p.z.data) own.z_start = own_tile_start(p, p.z, block, at.lane);
      own.grad_out_start = own_tile_start(p, p.grad_out, block, at.lane);
      const ScanGrads& grads = p.grads[at.direction];
      own.grad_u = start(grads.u, at);
      const auto sums = [&](const RowSums& sums) {
        const int64_t part = p.atomic ? 0 : block.first / kChannels;
        return sums.data + part * sums.part + block.b * sums.sequence + block.group * sums.group;
      };
      if (p.rank > 0) own.grad_dt = sums(grads.dt);
      own.grad_B = sums(grads.B);
      own.grad_C = sums(grads.C);
      if (p.rank > 0) load_weight<Shape>(p, scan, block, space, at.lane);
      MMVIM_UNROLL_BY(1)
      for (int i = at.lane; i < 4 * layout.rank_fours * kChannels; i += Shape::kThreads)
        space.floats(layout.grad_weight)[i] = 0.0f;
      copy(at, own, step, 0);
      wait_for_copies();
    }

    // Starts to bring a tile here.
    MMVIM_HD void copy(const Thread<Shape>& at, Registers& own, int step, int number) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, step);
      const Space<Shape> space = this->space(at);
      own.ahead.read(p, scan, tile, at.lane);
      const auto copy_tile = [&](const Rows& rows, const char* start, RawTile which) {
        copy_own_tile(rows, start, block, tile, at.lane, space.raw(number, which, kRawTiles));
      };
      copy_tile(scan.u, own.u_start, kU);
      if (p.rank == 0)
        copy_tile(scan.delta, own_tile_start(p, scan.delta, block, at.lane), kDelta);
      if (p.z.data) copy_tile(p.z, own.z_start, kZ);
      copy_tile(p.grad_out, own.grad_out_start, kGradOut);
    }
    MMVIM_HD void copy_next(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      if (visit.next >= 0) copy(at, own, visit.next, visit.copy + 1);
    }

    MMVIM_HD void convert(const Thread<Shape>& at, const Registers& own, const Visit& visit) const {
      const Direction& scan = p.scans[at.direction];
      own.ahead.store(p, scan, Tile(p, scan, visit.step), at.lane, space(at));
    }

    MMVIM_HD void prepare(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      copy_next(at, own, visit);
      const Direction& scan = p.scans[at.direction];
      const Space<Shape> space = this->space(at);
      prepare_steps<Shape>(p, scan, block, Tile(p, scan, visit.step), space, at,
                           space.raw(visit.copy, kU, kRawTiles),
                           space.raw(visit.copy, kDelta, kRawTiles),
                           [](int, float) {});
    }

    // The states before each sweep of a tile.
    MMVIM_HD void rebuild(const Thread<Shape>& at, Registers& own, const Visit& visit, int chunk,
                          int tile) const {
      if (tile == 0) {
        const int64_t place = checkpoint_place<Shape>(p, block, chunk, at);
        MMVIM_UNROLL
        for (int i = 0; i < kOwn; ++i)
          own.before[i] =
              given(at, i) ? p.checkpoints[place + static_cast<int64_t>(i) * p.channels] : 0.0f;
      }
      const Space<Shape> space = this->space(at);
      MMVIM_UNROLL_BY(1)
      for (int sweep = 0; sweep < kSweeps; ++sweep) {
        float* states = saved(space, at, tile * kSweeps + sweep);
        MMVIM_UNROLL
        for (int i = 0; i < kOwn; ++i) states[i * Shape::kThreads] = own.before[i];
        MMVIM_UNROLL
        for (int t = 0; t < kSweep; ++t) {
          const int slot = sweep * kSweep + t;
          const Floats<2> dt = load<2>(space.steps() + (slot * kChannels + at.k) * 2);
          const auto B = load<kOwn>(row(space, at, slot));
          MMVIM_UNROLL
          for (int i = 0; i < kOwn; ++i) {
            const float decay = exp2_fast(dt.at[0] * own.A[i]);
            own.before[i] = multiply_add(decay, own.before[i], dt.at[1] * B.at[i]);
          }
        }
      }
      if (visit.next >= 0) wait_for_copies();
    }

    MMVIM_HD void prepare_to_sweep(const Thread<Shape>& at, Registers& own,
                                   const Visit& visit) const {
      copy_next(at, own, visit);
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, visit.step);
      const Space<Shape> space = this->space(at);
      const T* grad_out = space.raw(visit.copy, kGradOut, kRawTiles);
      const T* z = space.raw(visit.copy, kZ, kRawTiles);
      const int place = tile.row(at.s) * kChannels + at.k;
      const int next = tile.sign() * Shape::kSplit * kChannels;
      float* grad_y = space.floats(layout.grad_y) + at.lane;  // of slot s, channel k
      float* slopes = space.floats(layout.slope) + at.lane;
      prepare_steps<Shape>(p, scan, block, tile, space, at,
                           space.raw(visit.copy, kU, kRawTiles),
                           space.raw(visit.copy, kDelta, kRawTiles),
                           [&](int j, float slope) {
                             float grad = p.scale * to_float(grad_out[place + j * next]);
                             if (p.z.data) grad *= silu(to_float(z[place + j * next]));
                             grad_y[j * Shape::kThreads] = grad;
                             slopes[j * Shape::kThreads] = slope;
                           });
    }

    // Decays and states of a sweep's tokens, into registers.
    MMVIM_HD void rebuild_tokens(const Thread<Shape>& at, Registers& own, int sweep,
                                 int place) const {
      const Space<Shape> space = this->space(at);
      const float* states = saved(space, at, place);
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i) own.before[i] = states[i * Shape::kThreads];
      MMVIM_UNROLL
      for (int t = 0; t < kSweep; ++t) {
        const int slot = sweep * kSweep + t;
        const Floats<2> dt = load<2>(space.steps() + (slot * kChannels + at.k) * 2);
        const auto B = load<kOwn>(row(space, at, slot));
        MMVIM_UNROLL
        for (int i = 0; i < kOwn; ++i) {
          own.decay[t][i] = exp2_fast(dt.at[0] * own.A[i]);
          own.h[t][i] = multiply_add(own.decay[t][i], t > 0 ? own.h[t - 1][i] : own.before[i],
                                     dt.at[1] * B.at[i]);
        }
      }
    }

    // Back over kShare tokens from the sweep's token First on.
    template <int First>
    MMVIM_HD void sweep(const Thread<Shape>& at, Registers& own, int sweep) const {
      const Space<Shape> space = this->space(at);
      float grad_A[kOwn] = {};  // of these tokens: all of them in one chain would lose digits
      MMVIM_UNROLL
      for (int i = kShare - 1; i >= 0; --i) {
        const int t = First + i, slot = sweep * kSweep + t;
        const Floats<2> dt = load<2>(space.steps() + (slot * kChannels + at.k) * 2);
        const float grad_y = space.floats(layout.grad_y)[slot * kChannels + at.k];
        const auto B = load<kOwn>(row(space, at, slot));
        const auto C = load<kOwn>(row(space, at, slot) + Shape::kStates);
        Floats<kOwn> grad_B, grad_C;
        float y = 0.0f, grad_dt = 0.0f, grad_dtu = 0.0f;
        MMVIM_UNROLL
        for (int n = 0; n < kOwn; ++n) {
          y = multiply_add(own.h[t][n], C.at[n], y);
          grad_C.at[n] = grad_y * own.h[t][n];
          own.grad[n] = multiply_add(own.later[n], own.grad[n], grad_y * C.at[n]);
          grad_B.at[n] = own.grad[n] * dt.at[1];
          grad_dtu = multiply_add(own.grad[n], B.at[n], grad_dtu);
          own.later[n] = own.decay[t][n];
          const float previous = t > 0 ? own.h[t - 1][n] : own.before[n];
          const float through_decay = own.grad[n] * own.decay[t][n] * previous;
          grad_dt = multiply_add(through_decay, own.A[n], grad_dt);
          grad_A[n] = multiply_add(through_decay, dt.at[0], grad_A[n]);
        }
        float* shares = space.floats(layout.shares) + i * 2 * Shape::kThreads * kOwn;
        store(shares + at.lane * kOwn, grad_B);
        store(shares + (Shape::kThreads + at.lane) * kOwn, grad_C);
        float* sums = space.floats(layout.sums) + i * 3 * Shape::kThreads + at.lane;
        sums[0] = grad_dt * kLn2;
        sums[Shape::kThreads] = grad_dtu;
        sums[2 * Shape::kThreads] = y;
      }
      MMVIM_UNROLL
      for (int n = 0; n < kOwn; ++n) own.grad_A[n] += grad_A[n];
    }

    // Sums over channels and over states of what a sweep over kShare slots from `first` on left.
    MMVIM_HD void share(const Thread<Shape>& at, Registers& own, const Visit& visit,
                        int first) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, visit.step);
      const Space<Shape> space = this->space(at);
      share_over_channels(at, own, tile, space, first);
      // A thread's channel is k in all its turns: kThreads is a multiple of kChannels.
      for (int i = at.lane; i < kShare * kChannels; i += Shape::kThreads) {
        const int slot = first + i / kChannels;
        const float* sums = space.floats(layout.sums) + i / kChannels * 3 * Shape::kThreads + at.k;
        float grad_dt = 0.0f, grad_dtu = 0.0f, y = 0.0f;
        MMVIM_UNROLL
        for (int s = 0; s < Shape::kSplit; ++s) {
          grad_dt += sums[s * kChannels];
          grad_dtu += sums[Shape::kThreads + s * kChannels];
          y += sums[2 * Shape::kThreads + s * kChannels];
        }
        const int row = tile.row(slot);
        if (row >= tile.count || at.k >= block.count) continue;
        const float u = to_float(
            space.raw(visit.copy, kU, kRawTiles)[row * kChannels + at.k]);
        const float D = scan.D ? scan.D[block.channel(p) + at.k] : 0.0f;
        const float dt = space.steps()[(slot * kChannels + at.k) * 2];
        float* grad_y = space.floats(layout.grad_y) + slot * kChannels + at.k;
        float* slope = space.floats(layout.slope) + slot * kChannels + at.k;
        const float grad_delta = multiply_add(grad_dtu, u, grad_dt) * *slope;
        const float grad_u = multiply_add(grad_dtu, dt, *grad_y * D);
        own.grad_D = multiply_add(*grad_y, u, own.grad_D);
        own.grad_bias += grad_delta;
        *grad_y = multiply_add(D, u, y);
        *slope = grad_delta;
        const ScanGrads& grads = p.grads[at.direction];
        put(own.grad_u, grads.u.token, tile, row, grad_u);
        if (grads.delta.data) put(start(grads.delta, at), grads.delta.token, tile, row, grad_delta);
      }
    }

    // What is done once a tile: the gradients of z, of the rows of dt, and of dt_weight.
    MMVIM_HD void finish(const Thread<Shape>& at, const Registers& own, const Visit& visit,
                         int direction) const {
      if (at.direction != direction) return;
      const Tile tile(p, p.scans[direction], visit.step);
      const Space<Shape> space = this->space(at);
      if (p.grad_z.data && at.k < block.count) finish_gate(at, visit, tile, space);
      if (p.rank > 0) finish_projection(at, own, tile, space);
      if (visit.next >= 0) wait_for_copies();
    }

    // The threads' sums of the gradients of D and bias, where one thread of a channel finds them.
    MMVIM_HD void leave(const Thread<Shape>& at, const Registers& own) const {
      float* sums = space(at).floats(layout.sums);
      sums[at.lane] = own.grad_D;
      sums[Shape::kThreads + at.lane] = own.grad_bias;
    }

    MMVIM_HD void end(const Thread<Shape>& at, const Registers& own) const {
      if (at.k >= block.count) return;
      const Space<Shape> space = this->space(at);
      const int64_t rows = p.states + p.rank + 2, ld = p.all_channels();
      float* out = p.grads[at.direction].parameters + block.b * rows * ld + block.channel(p) + at.k;
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i)
        if (given(at, i)) out[(at.s * kOwn + i) * ld] = own.grad_A[i];
      for (int r = at.s; r < p.rank; r += Shape::kSplit)
        out[(p.states + r) * ld] =
            space.floats(layout.grad_weight)[(r / 4 * kChannels + at.k) * 4 + r % 4];
      if (at.s != 0) return;
      const float* sums = space.floats(layout.sums) + at.k;
      float grad_D = 0.0f, grad_bias = 0.0f;
      for (int s = 0; s < Shape::kSplit; ++s) {
        grad_D += sums[s * kChannels];
        grad_bias += sums[Shape::kThreads + s * kChannels];
      }
      out[(p.states + p.rank) * ld] = grad_D;
      out[(p.states + p.rank + 1) * ld] = grad_bias;
    }

   private:
    MMVIM_HD float* saved(const Space<Shape>& space, const Thread<Shape>& at, int place) const {
      return space.floats(layout.states) + place * kOwn * Shape::kThreads + at.lane;
    }
    // A thread's states of B; those of C are kStates further.
    MMVIM_HD const float* row(const Space<Shape>& space, const Thread<Shape>& at, int slot) const {
      return space.rows() + slot * 2 * Shape::kStates + at.s * kOwn;
    }

    // Where channel k of token 0 lies.
    MMVIM_HD char* start(const Rows& rows, const Thread<Shape>& at) const {
      return rows.at(block.b, 0) + (block.channel(p) + at.k) * sizeof(T);
    }
    static MMVIM_HD void put(char* start, int64_t token, const Tile& tile, int row, float value) {
      *reinterpret_cast<T*>(start + tile.offset(token) + row * token) = from_float<T>(value);
    }
    MMVIM_HD void add(float* to, float value) const {
      if (p.atomic) {
        atomic_add(to, value);
      } else {
        *to = value;
      }
    }

    MMVIM_HD void share_over_channels(const Thread<Shape>& at, const Registers& own,
                                      const Tile& tile, const Space<Shape>& space,
                                      int first) const {
      constexpr int kTogether = kOwn < 2 ? 1 : 2;  // states that are summed up at once
      constexpr int kStates = Shape::kStates / kTogether;
      const ScanGrads& grads = p.grads[at.direction];
      MMVIM_UNROLL_BY(1)
      for (int i = at.lane; i < kShare * 2 * kStates; i += Shape::kThreads) {
        const int n = i % kStates * kTogether, rest = i / kStates, slot = first + rest / 2;
        const float* shares = space.floats(layout.shares) + rest * Shape::kThreads * kOwn +
                              n / kOwn * kChannels * kOwn + n % kOwn;
        Floats<kTogether> sum = {};
        MMVIM_UNROLL
        for (int j = 0; j < kChannels; ++j) {  // each begins elsewhere: another bank
          const auto share = load<kTogether>(shares + (i + j) % kChannels * kOwn);
          MMVIM_UNROLL
          for (int m = 0; m < kTogether; ++m) sum.at[m] += share.at[m];
        }
        const int row = tile.row(slot);
        if (row >= tile.count) continue;
        const int64_t token = rest % 2 == 0 ? grads.B.token : grads.C.token;
        float* to = rest % 2 == 0 ? own.grad_B : own.grad_C;
        to += tile.offset(token) + row * token + n;
        MMVIM_UNROLL
        for (int m = 0; m < kTogether; ++m)
          if (!Shape::kPadded || n + m < p.states) add(to + m, sum.at[m]);
      }
    }

    MMVIM_HD void finish_gate(const Thread<Shape>& at, const Visit& visit, const Tile& tile,
                              const Space<Shape>& space) const {
      const bool second = comes_second(p, p.tiles - 1 - visit.step, at.direction);
      const float* ys = space.floats(layout.grad_y) + at.k;
      const T* z = space.raw(visit.copy, kZ, kRawTiles) + at.k;
      const T* grad_out = space.raw(visit.copy, kGradOut, kRawTiles) + at.k;
      char* grad_z = start(p.grad_z, at);
      float* partials = p.partial + (block.b * p.length + tile.first) * p.all_channels() +
                        block.channel(p) + at.k;
      MMVIM_UNROLL_BY(4)
      for (int slot = at.s; slot < kTile; slot += Shape::kSplit) {
        const int row = tile.row(slot);
        if (row >= tile.count) continue;
        float* partial = partials + row * p.all_channels();
        float y = ys[slot * kChannels];
        if (!second) {
          *partial = y;
          continue;
        }
        if (p.directions == 2) y += *partial;
        const float grad = p.scale * to_float(grad_out[row * kChannels]) * y;
        put(grad_z, p.grad_z.token, tile, row,
            grad * silu_slope(to_float(z[row * kChannels])));
      }
    }

    MMVIM_HD void finish_projection(const Thread<Shape>& at, const Registers& own,
                                    const Tile& tile, const Space<Shape>& space) const {
      const float* grad_delta = space.floats(layout.slope);
      const int64_t token = p.grads[at.direction].dt.token;
      MMVIM_UNROLL_BY(1)
      for (int i = at.lane; i < kTile * layout.rank_fours; i += Shape::kThreads) {
        const int slot = i % kTile, r = i / kTile, row = tile.row(slot);
        if (row >= tile.count) continue;
        float sum[4] = {};
        MMVIM_UNROLL
        for (int j = 0; j < kChannels; ++j) {  // each begins elsewhere: another bank
          const int k = (slot + j) % kChannels;  // beyond the last channel, the weight is zero
          const float grad = grad_delta[slot * kChannels + k];
          const Floats<4> w = load<4>(space.weight() + (r * kChannels + k) * 4);
          MMVIM_UNROLL
          for (int m = 0; m < 4; ++m) sum[m] = multiply_add(grad, w.at[m], sum[m]);
        }
        float* to = own.grad_dt + tile.offset(token) + row * token + r * 4;
        MMVIM_UNROLL
        for (int m = 0; m < 4; ++m)
          if (r * 4 + m < p.rank) add(to + m, sum[m]);
      }
      MMVIM_UNROLL_BY(1)
      for (int i = at.lane; i < kChannels * layout.rank_fours; i += Shape::kThreads) {
        const int k = i % kChannels, r = i / kChannels;
        float* total = space.floats(layout.grad_weight) + i * 4;
        Floats<4> sum = load<4>(total);
        MMVIM_UNROLL_BY(4)
        for (int slot = 0; slot < kTile; ++slot) {  // beyond the last token, dt is zero
          const float grad = grad_delta[slot * kChannels + k];
          const Floats<4> dt = load<4>(space.dt() + (r * kTile + slot) * 4);
          MMVIM_UNROLL
          for (int m = 0; m < 4; ++m) sum.at[m] = multiply_add(grad, dt.at[m], sum.at[m]);
        }
        if (k < block.count) store(total, sum);
      }
    }
  };
};

}  // namespace mmvim::cuda
