// The forward pass of a scan, one direction or both of them at once: see scan.h.

#pragma once

#include "scan_tile.h"

namespace mmvim::cuda {

struct ForwardProblem : Problem {
  Rows out[2];                  // the same for both scans
  bool wide_out = false;        // out is float, whatever the inputs are
  float* last_state = nullptr;  // (B, groups * channels, states) of the only scan, or null
};

template <class Shape>
struct ScanForward {
  using T = typename Shape::T;
  using Params = ForwardProblem;
  using TheShape = Shape;
  static constexpr int kSplit = Shape::kSplit, kStates = Shape::kStates;
  static constexpr bool kVim = Shape::kVim;
  static constexpr Cost kCost = kVim ? Cost{5.5, 40.0, 8.0} : Cost{5.5, 51.0, 13.0};
  static constexpr int kMostThreads = 2 * Shape::kThreads;
  // At once on a multiprocessor, as far as registers are concerned: more would not fit unspilled.
  static constexpr bool kLong = Shape::kTile > 32;
  static constexpr int kBlocks = Shape::kOwn > (kLong ? 2 : 4) || Shape::kSplit == 1 ? 2
                                 : Shape::kOwn * sizeof(T) > 4 || kLong              ? 3
                                                                                     : 4;

  struct Registers {
    float A[Shape::kOwn];  // times log2(e), of the paired thread's states
    float h[Shape::kOwn];
    float D, bias;           // of channel k
    RowsAhead<Shape> ahead;  // of the next tile
    // Where the thread begins in a tile: to copy it, and at its first slot.
    const char *u, *delta, *z;
    char *partial, *out;
    float* checkpoint;  // of the next chunk
    // Where slots are few: what the thread's slots get from their input, and from the other scan.
    float skip[Shape::kSlots], other[Shape::kSlots];
  };
  static constexpr bool kFewSlots = Shape::kSlots <= 8;

  struct Layout : TileLayout {
    int sums;  // (8, kThreads, 4 slots): what a thread's states contribute to y

    MMVIM_HD explicit Layout(const Params& p) {
      take_fixed<Shape>();
      sums = take(4 * Shape::kTile * Shape::kThreads);
      const int tiles = Asks<Shape>::gate(p) ? kZ + 1 : kU + 1;
      take_rest<Shape>(p, Asks<Shape>::projection(p) ? tiles : kDelta + 1);
    }
  };
  enum RawTile { kU, kZ, kDelta };

  static bool serves(const Params& p) {
    return !Shape::kVim || (serves_vim<Shape>(p) && (!p.wide_out || sizeof(T) == sizeof(float)));
  }
  static void fit(Params& p) {
    orient<Shape>(p, [&](int d, const auto& turn) { turn(p.out[d]); });
  }
  static MMVIM_HD int64_t blocks(const Params& p) { return Block<Shape>::number(p); }
  static MMVIM_HD int threads(const Params& p) { return p.directions * Shape::kThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return p.directions * Layout(p).bytes; }

  // Calls `each` with one phase after the other.
  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Layout layout(p);
    const Pass pass = {p, Block<Shape>(p, index), layout, shared};
    each([&](int tid, Registers& own) { pass.begin(Thread<Shape>(tid), own); });
    // Grids until the next state is saved. A reverse scan's first tile of several may begin with an
    // empty one, which kernels with other tiles know nothing of.
    int left = 0, left_reverse = kLong ? static_cast<int>(p.scans[1].before) / kGrid : 0;
    const auto move_on = [&](int& left) {
      for (left -= Shape::kTile / kGrid; left < 0;) left += p.grids_a_chunk;
    };
    for (int step = 0;; ++step) {
      const int done = step - 1;
      const Turn turn = Turn::of<Shape>(p, done);
      if (step > 0 && turn.meet()) {
        each([&](int tid, Registers& own) {
          const Thread<Shape> at(tid);
          if (at.direction == 0) pass.finish(at, own, done);
        });
      }
      each([&](int tid, Registers& own) {
        const Thread<Shape> at(tid);
        if (step > 0 && (!turn.meet() || at.direction == 1)) pass.finish(at, own, done);
        if (step < p.tiles) {
          pass.convert(at, own, step);
        } else {
          pass.end(at.paired(), own);
        }
      });
      if (step == p.tiles) break;
      each([&](int tid, Registers& own) { pass.prepare(Thread<Shape>(tid), own, step); });
      each([&](int tid, Registers& own) {
        const Thread<Shape> at = Thread<Shape>(tid).paired();
        pass.recur(at, own, step, kLong && at.direction == 1 ? left_reverse : left);
      });
      move_on(left);
      if (kLong) move_on(left_reverse);
    }
  }

  struct Pass {
    const Params& p;
    const Block<Shape> block;
    const Layout& layout;
    char* shared;

    MMVIM_HD Space<Shape> space(const Thread<Shape>& at) const {
      return {layout, shared + at.direction * layout.bytes};
    }

    MMVIM_HD void begin(const Thread<Shape>& at, Registers& own) const {
      const Direction& scan = p.scans[at.direction];
      const Thread<Shape> pair = at.paired();
      MMVIM_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) {
        const int n = pair.s * Shape::kOwn + i;
        const bool given = pair.k < block.count && n < p.states;
        own.A[i] = given ? kLog2e * scan.A[(block.channel(p) + pair.k) * p.states + n] : 0.0f;
        own.h[i] = 0.0f;
      }
      own.checkpoint = p.checkpoints + checkpoint_place<Shape>(p, block, 0, pair);
      const bool exists = at.k < block.count;
      const int64_t channel = block.channel(p) + at.k;
      own.D = exists && scan.D ? scan.D[channel] : 0.0f;
      own.bias = exists && scan.bias ? scan.bias[channel] : 0.0f;
      own.ahead.begin(p, scan, block, 0, at.lane);
      own.u = own_tile_start(p, scan.u, block, 0, at.lane);
      if (!Asks<Shape>::projection(p))
        own.delta = own_tile_start(p, scan.delta, block, 0, at.lane);
      if (Asks<Shape>::gate(p)) own.z = own_tile_start(p, scan.z, block, 0, at.lane);
      own.partial = scan.partial.at(block.b, at.slot()) + channel * sizeof(float);
      const int64_t bytes = !Shape::kVim && p.wide_out ? sizeof(float) : sizeof(T);
      own.out = p.out[at.direction].at(block.b, at.slot()) + channel * bytes;
      if (Asks<Shape>::projection(p)) load_weight<Shape>(p, scan, block, space(at), at.lane);
      copy(at, own, 0);
      wait_for_copies();
    }

    // Starts to bring a tile here, from where the thread stands.
    MMVIM_HD void copy(const Thread<Shape>& at, Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile = Tile::of<Shape>(p, scan, step);
      const Space<Shape> space = this->space(at);
      own.ahead.read(p, scan, tile, at.lane);
      const auto copy_tile = [&](const Rows& rows, const char* from, RawTile which) {
        copy_own_tile(rows, from, block, tile, at.lane, space.raw(step, which));
      };
      copy_tile(scan.u, own.u, kU);
      if (!Asks<Shape>::projection(p)) copy_tile(scan.delta, own.delta, kDelta);
      if (Asks<Shape>::gate(p) && Turn::of<Shape>(p, step).second(at.direction))
        copy_tile(scan.z, own.z, kZ);
    }
    MMVIM_HD void copy_next(const Thread<Shape>& at, Registers& own, int step) const {
      if (step + 1 == p.tiles) return;
      const Direction& scan = p.scans[at.direction];
      own.ahead.move(scan, 1);
      own.u += scan.u.tile;
      if (!Asks<Shape>::projection(p)) own.delta += scan.delta.tile;
      if (Asks<Shape>::gate(p)) own.z += scan.z.tile;
      copy(at, own, step + 1);
    }

    MMVIM_HD void convert(const Thread<Shape>& at, const Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      own.ahead.store(p, scan, Tile::of<Shape>(p, scan, step), at.lane, space(at));
    }

    MMVIM_HD void prepare(const Thread<Shape>& at, Registers& own, int step) const {
      copy_next(at, own, step);
      const Direction& scan = p.scans[at.direction];
      const Tile tile = Tile::of<Shape>(p, scan, step);
      const Space<Shape> space = this->space(at);
      const Turn turn = Turn::of<Shape>(p, step);
      if (kFewSlots && Asks<Shape>::two(p) && !turn.meet() && turn.second(at.direction))
        read_other(at, own, tile);
      prepare_steps<Shape>(p, tile, space, at, own.bias, space.raw(step, kU),
                           space.raw(step, kDelta), [&](int j, float u, float) {
                             if (kFewSlots) own.skip[j] = own.D * u;
                           });
    }

    // The recurrence, h = exp(dt A) h + dt u B, and what the thread's states add to y = C h.
    // `left`: grids until a state is saved.
    MMVIM_HD void recur(const Thread<Shape>& at, Registers& own, int step, int left) const {
      const Space<Shape> space = this->space(at);
      // Behind the last token there may be a grid that no other kernel knows of.
      const uint32_t end = p.scans[at.direction].before + static_cast<uint32_t>(p.length);
      const uint32_t first = static_cast<uint32_t>(step) * Shape::kTile;
      const float *row = space.row(0, at.s), *steps = space.step(0, at.k);
      float* sums = space.floats(layout.sums) + pair_place<Shape>(at.s, at.k) * 4;
      MMVIM_UNROLL_BY(1)
      for (int grid = 0; grid < Shape::kTile / kGrid; ++grid) {
        if (left-- == 0) {
          left = p.grids_a_chunk - 1;
          if (!kLong || first + grid * kGrid < end) save(at, own);
        }
        MMVIM_UNROLL_BY(4)
        for (int four = 0; four < kGrid / 4; ++four) {
          Floats<4> y = {};
          MMVIM_UNROLL
          for (int t = 0; t < 4; t += 2) {
            const Floats<4> step = load<4>(steps);
            steps += Shape::kChannels * 4;
            MMVIM_UNROLL
            for (int j = 0; j < 2; ++j) {
              const float dt = step.at[2 * j], dtu = step.at[2 * j + 1];
              const auto BC = load<2 * Shape::kOwn>(row);
              row += kRow<Shape>;
              MMVIM_UNROLL
              for (int i = 0; i < Shape::kOwn; ++i) {
                own.h[i] = multiply_add(decay<T>(dt * own.A[i]), own.h[i], dtu * BC.at[i]);
                y.at[t + j] = multiply_add(own.h[i], BC.at[Shape::kOwn + i], y.at[t + j]);
              }
            }
          }
          store(sums, y);
          sums += Shape::kThreads * 4;
        }
      }
      wait_for_copies();
    }
    MMVIM_HD void save(const Thread<Shape>& at, Registers& own) const {
      MMVIM_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) {
        if (at.k < block.count && at.s * Shape::kOwn + i < p.states)
          own.checkpoint[static_cast<int64_t>(i) * p.channels] = own.h[i];
      }
      const int64_t directions = Asks<Shape>::two(p) ? 2 : 1;
      own.checkpoint += directions * p.batch * p.groups * p.states * p.channels;
    }

    // Sums over the states, skip connection, the other direction, gate.
    MMVIM_HD void finish(const Thread<Shape>& at, Registers& own, int step) const {
      if (at.k >= block.count) return;
      const Direction& scan = p.scans[at.direction];
      const Rows& rows_out = p.out[at.direction];
      const Turn turn = Turn::of<Shape>(p, step);
      const Tile tile = Tile::of<Shape>(p, scan, step);
      const Space<Shape> space = this->space(at);
      const int place = at.slot() * Shape::kChannels + at.k;
      const T* u = space.raw(step, kU) + place;
      const T* z = space.raw(step, kZ) + place;
      constexpr int kVector = Shape::kSlots < 4 ? Shape::kSlots : 4;
      const float* sums =
          space.floats(layout.sums) + at.slot() / 4 * Shape::kThreads * 4 + at.slot() % 4;
      float y[Shape::kSlots];
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kSlots; j += kVector, sums += Shape::kThreads * 4) {
        MMVIM_UNROLL
        for (int v = 0; v < kVector; ++v)
          y[j + v] =
              kFewSlots ? own.skip[j + v] : own.D * to_float(u[(j + v) * Shape::kChannels]);
        MMVIM_UNROLL
        for (int s = 0; s < Shape::kSplit; ++s) {
          const auto sum = load<kVector>(sums + pair_place<Shape>(s, at.k) * 4);
          MMVIM_UNROLL
          for (int v = 0; v < kVector; ++v) y[j + v] += sum.at[v];
        }
      }
      if (!turn.second(at.direction)) {
        char* partial = own.partial;
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j, partial += scan.partial.token)
          if (tile.given(at.slot() + j)) *reinterpret_cast<float*>(partial) = y[j];
      } else {
        if (Asks<Shape>::two(p)) {
          if (!kFewSlots || turn.meet()) read_other(at, own, tile);
          MMVIM_UNROLL
          for (int j = 0; j < Shape::kSlots; ++j) y[j] += own.other[j];
        }
        if (Asks<Shape>::gate(p)) {
          MMVIM_UNROLL
          for (int j = 0; j < Shape::kSlots; ++j) y[j] *= silu(to_float(z[j * Shape::kChannels]));
        }
        char* out = own.out;
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j, out += rows_out.token) {
          if (!tile.given(at.slot() + j)) continue;
          if (sizeof(T) == sizeof(float) || (!Shape::kVim && p.wide_out)) {
            *reinterpret_cast<float*>(out) = p.scale * y[j];
          } else {
            *reinterpret_cast<T*>(out) = from_float<T>(p.scale * y[j]);
          }
        }
      }
      own.partial += scan.partial.tile;
      own.out += rows_out.tile;
    }

    MMVIM_HD void read_other(const Thread<Shape>& at, Registers& own, const Tile& tile) const {
      const int64_t token = p.scans[at.direction].partial.token;
      const char* partial = own.partial;
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kSlots; ++j, partial += token) {
        const bool given = at.k < block.count && tile.given(at.slot() + j);
        own.other[j] = given ? *reinterpret_cast<const float*>(partial) : 0.0f;
      }
    }

    MMVIM_HD void end(const Thread<Shape>& at, const Registers& own) const {
      if (p.last_state == nullptr || at.direction != 0 || at.k >= block.count) return;
      const int64_t channel = block.b * p.all_channels() + block.channel(p) + at.k;
      MMVIM_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) {
        const int n = at.s * Shape::kOwn + i;
        if (n < p.states) p.last_state[channel * p.states + n] = own.h[i];
      }
    }
  };
};

}  // namespace mmvim::cuda
