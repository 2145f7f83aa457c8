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
  using typename Traits::Visit;
  using Traits::kChannels;
  using Traits::kDelta;
  using Traits::kGradOut;
  using Traits::kOwn;
  using Traits::kRawTiles;
  using Traits::kShare;
  using Traits::kSweep;
  using Traits::kSweeps;
  using Traits::kU;
  using Traits::kZ;
  static constexpr int kMostThreads = 2 * Shape::kThreads;
  // At once on a multiprocessor, as far as registers are concerned: more would not fit unspilled.
  static constexpr int kBlocks = Shape::kOwn * sizeof(T) > 4 ? 2 : 3;

  static void fit(Params& p) {
    orient<Shape>(p, [&](int d, const auto& turn) {
      ScanGrads& grads = p.grads[d];
      for (Rows* rows : {&grads.out, &grads.z, &grads.u, &grads.delta}) turn(*rows);
      for (RowSums* sums : {&grads.dt, &grads.B, &grads.C}) turn(*sums);
      grads.out.fit(kChannels * static_cast<int>(sizeof(T)));
    });
  }
  static MMVIM_HD int64_t blocks(const Params& p) { return Block<Shape>::number(p); }
  static MMVIM_HD int threads(const Params& p) { return p.directions * Shape::kThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return p.directions * Layout(p).bytes; }

  // Calls `each` with one phase after the other.
  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Layout layout(p);
    const Pass pass(p, index, layout, shared);
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
        if (Turn(p, p.tiles - 1 - step).meet()) {
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

  struct Pass : BackwardSums<Shape> {
    using Sums = BackwardSums<Shape>;
    using Sums::Sums;
    using Sums::block;
    using Sums::given;
    using Sums::layout;
    using Sums::p;
    using Sums::space;
    using Sums::start;

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
      own.bias = at.k < block.count && scan.bias ? scan.bias[channel] : 0.0f;
      own.grad_D = own.grad_bias = 0.0f;
      const Space<Shape> space = this->space(at);
      const ScanGrads& grads = p.grads[at.direction];
      own.ahead.begin(p, scan, block, step, at.lane);
      own.u = own_tile_start(p, scan.u, block, step, at.lane);
      if (p.rank == 0) own.delta = own_tile_start(p, scan.delta, block, step, at.lane);
      if (p.gated) own.z = own_tile_start(p, scan.z, block, step, at.lane);
      own.grad_out = own_tile_start(p, grads.out, block, step, at.lane);
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

    // Starts to bring a tile here, from where the thread stands.
    MMVIM_HD void copy(const Thread<Shape>& at, Registers& own, int step, int number) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, step);
      const Space<Shape> space = this->space(at);
      own.ahead.read(p, scan, tile, at.lane);
      const auto copy_tile = [&](const Rows& rows, const char* start, RawTile which) {
        copy_own_tile(rows, start, block, tile, at.lane, space.raw(number, which, kRawTiles));
      };
      copy_tile(scan.u, own.u, kU);
      if (p.rank == 0) copy_tile(scan.delta, own.delta, kDelta);
      if (p.gated) copy_tile(scan.z, own.z, kZ);
      copy_tile(p.grads[at.direction].out, own.grad_out, kGradOut);
    }
    MMVIM_HD void copy_next(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      if (visit.next < 0) return;
      const Direction& scan = p.scans[at.direction];
      const int tiles = visit.next - visit.step;
      own.ahead.move(scan, tiles);
      own.u += tiles * scan.u.tile;
      if (p.rank == 0) own.delta += tiles * scan.delta.tile;
      if (p.gated) own.z += tiles * scan.z.tile;
      own.grad_out += tiles * p.grads[at.direction].out.tile;
      copy(at, own, visit.next, visit.copy + 1);
    }

    MMVIM_HD void convert(const Thread<Shape>& at, const Registers& own, const Visit& visit) const {
      const Direction& scan = p.scans[at.direction];
      own.ahead.store(p, scan, Tile(p, scan, visit.step), at.lane, space(at));
    }

    MMVIM_HD void prepare(const Thread<Shape>& at, Registers& own, const Visit& visit) const {
      copy_next(at, own, visit);
      const Space<Shape> space = this->space(at);
      prepare_steps<Shape>(p, Tile(p, p.scans[at.direction], visit.step), space, at, own.bias,
                           space.raw(visit.copy, kU, kRawTiles),
                           space.raw(visit.copy, kDelta, kRawTiles),
                           [](int, float, float) {});
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
          const Floats<2> dt = load<2>(space.step(slot, at.k));
          const auto B = load<kOwn>(space.row(slot, at.s));
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
      const Space<Shape> space = this->space(at);
      const int place = at.slot() * kChannels + at.k;
      const T* grad_out = space.raw(visit.copy, kGradOut, kRawTiles) + place;
      const T* z = space.raw(visit.copy, kZ, kRawTiles) + place;
      float* grad_y = space.floats(layout.grad_y) + place;
      float* slopes = space.floats(layout.slope) + place;
      prepare_steps<Shape>(p, Tile(p, scan, visit.step), space, at, own.bias,
                           space.raw(visit.copy, kU, kRawTiles),
                           space.raw(visit.copy, kDelta, kRawTiles),
                           [&](int j, float, float slope) {
                             float grad = p.scale * to_float(grad_out[j * kChannels]);
                             if (p.gated) grad *= silu(to_float(z[j * kChannels]));
                             grad_y[j * kChannels] = grad;
                             slopes[j * kChannels] = slope;
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
        const Floats<2> dt = load<2>(space.step(slot, at.k));
        const auto B = load<kOwn>(space.row(slot, at.s));
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
        const Floats<2> dt = load<2>(space.step(slot, at.k));
        const float grad_y = space.floats(layout.grad_y)[slot * kChannels + at.k];
        const auto BC = load<2 * kOwn>(space.row(slot, at.s));
        const float *B = BC.at, *C = BC.at + kOwn;
        Floats<kOwn> grad_B, grad_C;
        float y = 0.0f, grad_dt = 0.0f, grad_dtu = 0.0f;
        MMVIM_UNROLL
        for (int n = 0; n < kOwn; ++n) {
          y = multiply_add(own.h[t][n], C[n], y);
          grad_C.at[n] = grad_y * own.h[t][n];
          own.grad[n] = multiply_add(own.later[n], own.grad[n], grad_y * C[n]);
          grad_B.at[n] = own.grad[n] * dt.at[1];
          grad_dtu = multiply_add(own.grad[n], B[n], grad_dtu);
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

   private:
    MMVIM_HD float* saved(const Space<Shape>& space, const Thread<Shape>& at, int place) const {
      return space.floats(layout.states) + place * kOwn * Shape::kThreads + at.lane;
    }
  };
};

}  // namespace mmvim::cuda
