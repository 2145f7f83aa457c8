// The backward pass of a scan, one direction or both of them at once: see scan.h.
//
// A direction walks over its tiles in the opposite order of its forward pass, chunk by chunk. The
// forward pass saved the state before each chunk. First the states before every kSweep tokens of
// the chunk are rebuilt into shared memory; then, from the chunk's last tokens to its first, the
// decays and states of kSweep tokens are rebuilt in registers and the gradients swept back over
// them. So each decay is computed twice, and no state of a token is ever written to memory.

#pragma once

#include "scan_grads.h"

namespace mmvim::cuda {

template <class Shape>
struct ScanBackward : BackwardTraits<Shape> {
  using Traits = BackwardTraits<Shape>;
  using typename Traits::T;
  using typename Traits::Params;
  using typename Traits::Registers;
  using typename Traits::Layout;
  using typename Traits::RawTile;
  using typename Traits::Cursor;
  using typename Traits::Visit;
  using Traits::kChannels;
  using Traits::kDelta;
  using Traits::kNarrow;
  using Traits::kOwn;
  using Traits::kPair;
  using Traits::kShare;
  using Traits::kSweep;
  using Traits::kSweeps;
  using Traits::kVector;
  using Traits::kVectors;
  using Traits::kWideGrad;
  using Traits::place;
  using Traits::kU;
  using Traits::kZ;
  using TheShape = Shape;
  static_assert(Shape::kTile == kGrid, "a chunk is walked over in whole tiles");
  static constexpr int kSplit = Shape::kSplit, kStates = Shape::kStates;
  static constexpr bool kVim = Shape::kVim;
  static constexpr Cost kCost = {19.5, 310.0, kVim ? 42.0 : 54.0};
  static constexpr int kMostThreads = 2 * Shape::kThreads;
  // At once on a multiprocessor, as far as registers are concerned: more would not fit unspilled.
  // From compute capability 10 on the compiler takes more registers where numbers are float32.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr bool kRoomy = sizeof(T) > 2;
#else
  static constexpr bool kRoomy = false;
#endif
  static constexpr int kBlocks =
      Shape::kSplit == 1 ? 1 : kRoomy || Shape::kOwn * sizeof(T) > 4 ? 2 : 3;

  static bool serves(const Params& p) {
    if (!Shape::kVim) return true;
    constexpr int row = kChannels * static_cast<int>(sizeof(T));
    // Sums are rows of their own, whole where dt, B and C are.
    return serves_vim<Shape>(p) && p.grads[0].z.data &&
           p.grads[0].out.alignment >= (row < 16 ? row : 16) && !(kNarrow && p.wide_grad);
  }
  static void fit(Params& p) {
    orient<Shape>(p, [&](int d, const auto& turn) {
      ScanGrads& grads = p.grads[d];
      for (Rows* rows : {&grads.out, &grads.z, &grads.u, &grads.delta}) turn(*rows);
      for (RowSums* sums : {&grads.dt, &grads.B, &grads.C}) turn(*sums);
      grads.out.fit(kChannels * static_cast<int>(p.wide_grad ? sizeof(float) : sizeof(T)));
    });
    p.whole_sums = has_whole_sums(p);
    if (Shape::kVim && !p.whole_sums) throw LaunchError("sums of gradients are not aligned");
  }
  static MMVIM_HD int64_t blocks(const Params& p) { return Block<Shape>::number(p); }
  static MMVIM_HD int threads(const Params& p) { return p.directions * Shape::kThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return p.directions * Layout(p).bytes; }

  // Calls `each` with one phase after the other.
  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Layout layout(p);
    const Pass pass(p, index, layout, shared);
    const int end_tile = p.end_tile(), last_chunk = (end_tile - 1) / p.grids_a_chunk;
    each([&](int tid, Registers& own) {
      pass.begin(Thread<Shape>(tid), own, last_chunk * p.grids_a_chunk);
    });
    int copy = 0;
    for (int chunk = last_chunk; chunk >= p.first_chunk; --chunk) {
      const int begin = chunk * p.grids_a_chunk;
      const int end = begin + p.grids_a_chunk < end_tile ? begin + p.grids_a_chunk : end_tile;
      for (int step = begin; step < end; ++step) {
        const bool last = step + 1 == end;
        const Visit visit = {step, copy++, last ? step : step + 1, last};
        each([&](int tid, Registers& own) { pass.convert(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) { pass.prepare(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) {
          pass.rebuild(Thread<Shape>(tid).paired(), own, visit, chunk, step - begin);
        });
      }
      for (int step = end - 1; step >= begin; --step) {
        const int next_chunk = chunk > p.first_chunk ? begin - p.grids_a_chunk : -1;
        const bool first = step == begin;
        const Visit visit = {step, copy++, first ? next_chunk : step - 1, !first};
        each([&](int tid, Registers& own) { pass.convert(Thread<Shape>(tid), own, visit); });
        each([&](int tid, Registers& own) {
          pass.prepare_to_sweep(Thread<Shape>(tid), own, visit);
        });
        for (int sweep = kSweeps - 1; sweep >= 0; --sweep) {
          const int place = (step - begin) * kSweeps + sweep, later = kSweep - kShare;
          each([&](int tid, Registers& own) {
            const Thread<Shape> at = Thread<Shape>(tid).paired();
            pass.rebuild_tokens(at, own, sweep, place);
            pass.template sweep<kSweep - kShare>(at, own, sweep);
          });
          each([&](int tid, Registers&) {
            pass.share(Thread<Shape>(tid), visit, sweep * kSweep + later);
          });
          if (later == 0) continue;  // a sweep's tokens in one go
          each([&](int tid, Registers& own) {
            pass.template sweep<0>(Thread<Shape>(tid).paired(), own, sweep);
          });
          each([&](int tid, Registers&) {
            pass.share(Thread<Shape>(tid), visit, sweep * kSweep);
          });
        }
        const bool met = Turn::of<Shape>(p, p.tiles - 1 - step).meet();
        if (met) {
          each([&](int tid, Registers&) {
            const Thread<Shape> at(tid);
            if (at.direction == 0) pass.finish(at, visit);
          });
        }
        each([&](int tid, Registers&) {
          const Thread<Shape> at(tid);
          if (!met || at.direction == 1) pass.finish(at, visit);
        });
      }
    }
    each([&](int tid, Registers& own) { pass.end(Thread<Shape>(tid), own); });
  }

  struct Pass : BackwardSums<Shape> {
    using Sums = BackwardSums<Shape>;
    using Sums::Sums;
    using Sums::block;
    using Sums::begin_sums;
    using Sums::carried;
    using Sums::cursor;
    using Sums::given;
    using Sums::grad_out;
    using Sums::layout;
    using Sums::p;
    using Sums::space;

    MMVIM_HD void begin(const Thread<Shape>& at, Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      const Thread<Shape> pair = at.paired();
      const int64_t channel = block.channel(p) + pair.k;
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int n = pair.s * kOwn + i;
        own.A[i] = given(pair, i) ? kLog2e * scan.A[channel * p.states + n] : 0.0f;
        own.grad[i] = given(pair, i) && p.grad_last_state && at.direction == 0
                          ? p.grad_last_state[(block.b * p.all_channels() + channel) * p.states + n]
                          : 0.0f;
        own.later[i] = 1.0f;
        own.grad_A[i] = 0.0f;
        if (p.goes_on && given(pair, i)) {
          own.grad[i] = *carried(pair, 0, i);
          own.later[i] = *carried(pair, 1, i);
        }
      }
      begin_sums(at);
      own.ahead.begin(p, scan, block, step, at.lane);
      const auto start_copies = [&](const Rows& rows, Cursor which) {
        cursor(at, which) = own_tile_start(p, rows, block, step, at.lane);
      };
      start_copies(scan.u, Cursor::kCopyU);
      if (!Asks<Shape>::projection(p)) start_copies(scan.delta, Cursor::kCopyDelta);
      if (Asks<Shape>::gate(p)) start_copies(scan.z, Cursor::kCopyZ);
      const Rows& grad_out = p.grads[at.direction].out;
      if (kWideGrad && p.wide_grad) {
        cursor(at, Cursor::kCopyGradOut) =
            own_tile_start<Shape, float>(p, grad_out, block, step, at.lane);
      } else {
        start_copies(grad_out, Cursor::kCopyGradOut);
      }
      const Space<Shape> space = this->space(at);
      if (at.s == 0) {
        const bool exists = at.k < block.count;
        float* channels = space.floats(layout.channels) + at.k;
        channels[0] = exists && scan.bias ? scan.bias[block.channel(p) + at.k] : 0.0f;
        channels[kChannels] = exists && scan.D ? scan.D[block.channel(p) + at.k] : 0.0f;
      }
      if (Asks<Shape>::projection(p)) load_weight<Shape>(p, scan, block, space, at.lane);
      MMVIM_UNROLL_BY(1)
      for (int i = at.lane; i < 4 * layout.rank_fours * kChannels; i += Shape::kThreads)
        space.floats(layout.grad_weight)[i] = 0.0f;
      copy(at, own, step, 0, false);
      wait_for_copies();
    }

    // Starts to bring a tile here, from where the thread stands.
    MMVIM_HD void copy(const Thread<Shape>& at, Registers& own, int step, int number,
                       bool sweeps) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile = Tile::of<Shape>(p, scan, step);
      const Space<Shape> space = this->space(at);
      own.ahead.read(p, scan, tile, at.lane, sweeps);
      const auto copy_tile = [&](const Rows& rows, Cursor from, RawTile which) {
        copy_own_tile(rows, in_global(cursor(at, from)), block, tile, at.lane,
                      space.raw(number, which));
      };
      copy_tile(scan.u, Cursor::kCopyU, kU);
      if (!Asks<Shape>::projection(p)) copy_tile(scan.delta, Cursor::kCopyDelta, kDelta);
      if (!sweeps) return;
      if (Asks<Shape>::gate(p)) copy_tile(scan.z, Cursor::kCopyZ, kZ);
      const Rows& grad_out = p.grads[at.direction].out;
      const char* from = in_global(cursor(at, Cursor::kCopyGradOut));
      T* to = space.raw(number, layout.grad_out);
      if (kWideGrad && p.wide_grad) {
        copy_own_tile(grad_out, from, block, tile, at.lane, reinterpret_cast<float*>(to));
      } else {
        copy_own_tile(grad_out, from, block, tile, at.lane, to);
      }
    }
    MMVIM_HD void copy_next(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      if (visit.next < 0) return;
      const Direction& scan = p.scans[at.direction];
      const int tiles = visit.next - visit.step;
      own.ahead.move(scan, tiles);
      cursor(at, Cursor::kCopyU) += tiles * scan.u.tile;
      if (!Asks<Shape>::projection(p)) cursor(at, Cursor::kCopyDelta) += tiles * scan.delta.tile;
      if (Asks<Shape>::gate(p)) cursor(at, Cursor::kCopyZ) += tiles * scan.z.tile;
      cursor(at, Cursor::kCopyGradOut) += tiles * p.grads[at.direction].out.tile;
      copy(at, own, visit.next, visit.copy + 1, visit.next_sweeps);
    }

    MMVIM_HD void convert(const Thread<Shape>& at, const Registers& own, const Visit& visit) const {
      const Direction& scan = p.scans[at.direction];
      own.ahead.store(p, scan, Tile::of<Shape>(p, scan, visit.step), at.lane, space(at));
    }

    MMVIM_HD void prepare(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      copy_next(at, own, visit);
      prepare_steps(at, visit, [](int, float, float) {});
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
      const float *row = space.row(0, at.s), *steps = space.step(0, at.k);
      float* states = saved(space, at, tile * kSweeps);
      MMVIM_UNROLL_BY(1)
      for (int sweep = 0; sweep < kSweeps; ++sweep) {
        MMVIM_UNROLL
        for (int i = 0; i < kOwn; ++i, states += Shape::kThreads) *states = own.before[i];
        MMVIM_UNROLL
        for (int t = 0; t < kSweep; t += 2, steps += kChannels * 4) {
          const Floats<4> step = load<4>(steps);
          MMVIM_UNROLL
          for (int j = 0; j < 2; ++j, row += kRow<Shape>) {
            const auto B = load<kOwn>(row);
            MMVIM_UNROLL
            for (int i = 0; i < kOwn; ++i) {
              const float decay = cuda::decay<T>(step.at[2 * j] * own.A[i]);
              own.before[i] =
                  multiply_add(decay, own.before[i], step.at[2 * j + 1] * B.at[i]);
            }
          }
        }
      }
      if (visit.next >= 0) wait_for_copies();
    }

    MMVIM_HD void prepare_to_sweep(const Thread<Shape>& at, Registers& own,
                                   const Visit& visit) const {
      copy_next(at, own, visit);
      const Space<Shape> space = this->space(at);
      const int first = at.slot() * kChannels + at.k;
      const T* z = space.raw(visit.copy, kZ) + first;
      float grads[Shape::kSlots], slopes[Shape::kSlots];
      prepare_steps(at, visit, [&](int j, float, float slope) {
        grads[j] = p.scale * grad_out(space, visit.copy, first + j * kChannels);
        if (Asks<Shape>::gate(p)) grads[j] *= silu(to_float(z[j * kChannels]));
        slopes[j] = slope;
      });
      constexpr int kTogether = Shape::kSlots < 4 ? Shape::kSlots : 4;
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kSlots; j += kTogether) {
        Floats<kTogether> grad, slope;
        MMVIM_UNROLL
        for (int i = 0; i < kTogether; ++i) {
          grad.at[i] = grads[j + i];
          slope.at[i] = slopes[j + i];
        }
        store(space.floats(layout.grad_y) + place(at.slot() + j, at.k), grad);
        store(space.floats(layout.slope) + place(at.slot() + j, at.k), slope);
      }
    }

    // Decays and states of a sweep's tokens, into registers.
    MMVIM_HD void rebuild_tokens(const Thread<Shape>& at, Registers& own, int sweep,
                                 int place) const {
      const Space<Shape> space = this->space(at);
      const float* states = saved(space, at, place);
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i) own.before[i] = states[i * Shape::kThreads];
      const float* row = space.row(sweep * kSweep, at.s);
      const float* steps = space.step(sweep * kSweep, at.k);
      Floats<4> step;
      MMVIM_UNROLL
      for (int t = 0; t < kSweep; ++t) {
        if (t % 2 == 0) step = load<4>(steps + t * kChannels * 2);
        const auto B = load<kOwn>(row + t * kRow<Shape>);
        const float dt = step.at[t % 2 * 2], dtu = step.at[t % 2 * 2 + 1];
        MMVIM_UNROLL
        for (int i = 0; i < kOwn; ++i) {
          own.decay[t][i] = cuda::decay<T>(dt * own.A[i]);
          own.h[t][i] = multiply_add(own.decay[t][i], t > 0 ? own.h[t - 1][i] : own.before[i],
                                     dtu * B.at[i]);
        }
      }
    }

    // Back over kShare tokens from the sweep's token First on.
    template <int First>
    MMVIM_HD void sweep(const Thread<Shape>& at, Registers& own, int sweep) const {
      const Space<Shape> space = this->space(at);
      const float* row = space.row(sweep * kSweep, at.s);
      const float* steps = space.step(sweep * kSweep, at.k);
      const float* grad_ys = space.floats(layout.grad_y) + place(sweep * kSweep, at.k);
      const int own_place = pair_place<Shape>(at.s, at.k);
      float* shares = space.floats(layout.shares) + own_place * kVector;
      float* sums = space.floats(layout.sums) + own_place * 2;
      float grad_A[kOwn] = {};  // of these tokens: all of them in one chain would lose digits
      Floats<4> step, grad_ys_of_four;
      Floats<2> grad_dt, grad_dtu, y;
      MMVIM_UNROLL
      for (int i = kShare - 1; i >= 0; --i) {
        const int t = First + i, half = t % 2;
        if (half == 1) {
          step = load<4>(steps + (t - 1) * kChannels * 2);
          grad_dt = grad_dtu = y = {};
        }
        if (t % 4 == 3) grad_ys_of_four = load<4>(grad_ys + (t - 3) * kChannels);
        const float dt = step.at[2 * half], dtu = step.at[2 * half + 1];
        const float grad_y = grad_ys_of_four.at[t % 4];
        const auto BC = load<2 * kOwn>(row + t * kRow<Shape>);
        Floats<kVector> grads[kVectors];  // of B and C
        MMVIM_UNROLL
        for (int n = 0; n < kOwn; ++n) {
          const float B = BC.at[n], C = BC.at[kOwn + n];
          y.at[half] = multiply_add(own.h[t][n], C, y.at[half]);
          own.grad[n] = multiply_add(own.later[n], own.grad[n], grad_y * C);
          grads[n / kVector].at[n % kVector] = own.grad[n] * dtu;
          grads[(kOwn + n) / kVector].at[(kOwn + n) % kVector] = grad_y * own.h[t][n];
          grad_dtu.at[half] = multiply_add(own.grad[n], B, grad_dtu.at[half]);
          own.later[n] = own.decay[t][n];
          const float previous = t > 0 ? own.h[t - 1][n] : own.before[n];
          const float through_decay = own.grad[n] * own.decay[t][n] * previous;
          grad_dt.at[half] = multiply_add(through_decay, own.A[n], grad_dt.at[half]);
          grad_A[n] = multiply_add(through_decay, dt, grad_A[n]);
        }
        MMVIM_UNROLL
        for (int v = 0; v < kVectors; ++v)
          store(shares + (i * kVectors + v) * Shape::kThreads * kVector, grads[v]);
        if (half == 0) {
          grad_dt.at[0] *= kLn2;
          grad_dt.at[1] *= kLn2;
          float* to = sums + i / 2 * kPair;
          store(to, grad_dt);
          store(to + Shape::kThreads * 2, grad_dtu);
          store(to + 2 * Shape::kThreads * 2, y);
        }
      }
      MMVIM_UNROLL
      for (int n = 0; n < kOwn; ++n) own.grad_A[n] += grad_A[n];
    }

   private:
    template <class Each>
    MMVIM_HD void prepare_steps(const Thread<Shape>& at, const Visit& visit,
                                const Each& each) const {
      const Space<Shape> space = this->space(at);
      const float bias = space.floats(layout.channels)[at.k];
      const Tile tile = Tile::of<Shape>(p, p.scans[at.direction], visit.step);
      cuda::prepare_steps<Shape>(p, tile, space, at, bias, space.raw(visit.copy, kU),
                                 space.raw(visit.copy, kDelta), each);
    }
    MMVIM_HD float* saved(const Space<Shape>& space, const Thread<Shape>& at, int place) const {
      return space.floats(layout.states) + place * kOwn * Shape::kThreads + at.lane;
    }
  };
};

}  // namespace mmvim::cuda
