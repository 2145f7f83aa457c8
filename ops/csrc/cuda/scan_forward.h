// The forward pass of a scan, one direction or both of them at once: see scan.h.

#pragma once

#include "scan_tile.h"

namespace mmvim::cuda {

struct ForwardProblem : Problem {
  Rows out;
  float* last_state = nullptr;  // (B, groups * channels, states) of the only scan, or null
};

template <class Shape>
struct ScanForward {
  using T = typename Shape::T;
  using Params = ForwardProblem;
  static constexpr int kMostThreads = 2 * Shape::kThreads;
  // At once on a multiprocessor, as far as registers are concerned: more would not fit unspilled.
  static constexpr int kBlocks = Shape::kOwn > 4 ? 2 : 3;

  struct Registers {
    float A[Shape::kOwn];  // times log2(e)
    float h[Shape::kOwn];
    RowsAhead<Shape> ahead;  // of the next tile
    // Where the thread finds its part of the first tile: to copy it, and of slot s.
    const char *u_start, *delta_start, *z_start;
    char* out;
    float* partial;
    // What the other direction left in the thread's slots of the tile, where they are few.
    float other[Shape::kSlots];
  };
  static constexpr bool kReadsAhead = Shape::kSlots <= 8;

  struct Layout : TileLayout {
    int sums;  // (32, kThreads): what a thread's states contribute to y

    MMVIM_HD explicit Layout(const Params& p)
        : TileLayout(tile_layout<Shape>(p, kRawTiles)), sums(take(4 * kTile * Shape::kThreads)) {}
  };
  enum RawTile { kU, kDelta, kZ, kRawTiles };

  static void fit(Params& p) { fit_copies<Shape>(p); }
  static MMVIM_HD int64_t blocks(const Params& p) { return Block<Shape>::number(p); }
  static MMVIM_HD int threads(const Params& p) { return p.directions * Shape::kThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return p.directions * Layout(p).bytes; }

  // Calls `each` with one phase after the other.
  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Layout layout(p);
    const Pass pass = {p, Block<Shape>(p, index), layout, shared};
    each([&](int tid, Registers& own) { pass.begin(Thread<Shape>(tid), own); });
    for (int step = 0; step < p.tiles; ++step) {
      const int done = step - 1;
      if (step > 0 && meet(p, done)) {
        each([&](int tid, Registers& own) { pass.finish(Thread<Shape>(tid), own, done, 0); });
        each([&](int tid, Registers& own) { pass.finish(Thread<Shape>(tid), own, done, 1); });
      }
      each([&](int tid, Registers& own) {
        const Thread<Shape> at(tid);
        if (step > 0 && !meet(p, done)) pass.finish(at, own, done, at.direction);
        pass.convert(at, own, step);
      });
      each([&](int tid, Registers& own) { pass.prepare(Thread<Shape>(tid), own, step); });
      each([&](int tid, Registers& own) { pass.recur(Thread<Shape>(tid), own, step); });
    }
    const int done = p.tiles - 1;
    if (meet(p, done))
      each([&](int tid, Registers& own) { pass.finish(Thread<Shape>(tid), own, done, 0); });
    each([&](int tid, Registers& own) {
      const Thread<Shape> at(tid);
      if (!meet(p, done) || at.direction == 1) pass.finish(at, own, done, at.direction);
      pass.end(at, own);
    });
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
      MMVIM_UNROLL
      for (int i = 0; i < Shape::kOwn; ++i) {
        const int n = at.s * Shape::kOwn + i;
        const bool given = at.k < block.count && n < p.states;
        own.A[i] = given ? kLog2e * scan.A[(block.channel(p) + at.k) * p.states + n] : 0.0f;
        own.h[i] = 0.0f;
      }
      own.ahead.begin(p, scan, block, at.lane);
      own.u_start = own_tile_start(p, scan.u, block, at.lane);
      if (p.rank == 0) own.delta_start = own_tile_start(p, scan.delta, block, at.lane);
      if (p.z.data) own.z_start = own_tile_start(p, p.z, block, at.lane);
      const int row = scan.reverse ? kTile - 1 - at.s : at.s;
      const int64_t channel = block.channel(p) + at.k;
      own.out = p.out.at(block.b, row) + channel * sizeof(T);
      own.partial = p.partial + (block.b * p.length + row) * p.all_channels() + channel;
      if (p.rank > 0) load_weight<Shape>(p, scan, block, space(at), at.lane);
      copy(at, own, 0);
      wait_for_copies();
    }

    // Starts to bring a tile here.
    MMVIM_HD void copy(const Thread<Shape>& at, Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, step);
      const Space<Shape> space = this->space(at);
      own.ahead.read(p, scan, tile, at.lane);
      const auto copy_tile = [&](const Rows& rows, const char* start, RawTile which) {
        copy_own_tile(rows, start, block, tile, at.lane, space.raw(step, which, kRawTiles));
      };
      copy_tile(scan.u, own.u_start, kU);
      if (p.rank == 0) copy_tile(scan.delta, own.delta_start, kDelta);
      if (p.z.data && comes_second(p, step, at.direction)) copy_tile(p.z, own.z_start, kZ);
    }

    MMVIM_HD void convert(const Thread<Shape>& at, const Registers& own, int step) const {
      const Direction& scan = p.scans[at.direction];
      own.ahead.store(p, scan, Tile(p, scan, step), at.lane, space(at));
    }

    MMVIM_HD void prepare(const Thread<Shape>& at, Registers& own, int step) const {
      if (step + 1 < p.tiles) copy(at, own, step + 1);
      const Direction& scan = p.scans[at.direction];
      const Tile tile(p, scan, step);
      const Space<Shape> space = this->space(at);
      prepare_steps<Shape>(p, scan, block, tile, space, at, space.raw(step, kU, kRawTiles),
                           space.raw(step, kDelta, kRawTiles), [](int, float) {});
      if constexpr (kReadsAhead) {
        const bool second = p.directions == 2 && comes_second(p, step, at.direction);
        if (second && !meet(p, step) && at.k < block.count) {
          const int row = tile.row(at.s);
          const float* partial = own.partial + tile.offset(p.all_channels());
          const int64_t next = tile.sign() * Shape::kSplit * p.all_channels();
          MMVIM_UNROLL
          for (int j = 0; j < Shape::kSlots; ++j, partial += next) {
            own.other[j] = 0.0f;
            if (row + j * tile.sign() * Shape::kSplit < tile.count) own.other[j] = *partial;
          }
        }
      }
    }

    // The recurrence, h = exp(dt A) h + dt u B, and what the thread's states add to y = C h.
    MMVIM_HD void recur(const Thread<Shape>& at, Registers& own, int step) const {
      const Space<Shape> space = this->space(at);
      if (step % p.tiles_a_chunk == 0 && at.k < block.count) {
        const int64_t place = checkpoint_place<Shape>(p, block, step / p.tiles_a_chunk, at);
        MMVIM_UNROLL
        for (int i = 0; i < Shape::kOwn; ++i) {
          if (at.s * Shape::kOwn + i < p.states)
            p.checkpoints[place + static_cast<int64_t>(i) * p.channels] = own.h[i];
        }
      }
      const float* rows = space.rows() + at.s * Shape::kOwn;
      const float* steps = space.steps() + at.k * 2;
      float* sums = space.floats(layout.sums) + at.lane;
      MMVIM_UNROLL_BY(8)
      for (int slot = 0; slot < kTile; ++slot) {
        const Floats<2> dt = load<2>(steps + slot * Shape::kChannels * 2);
        const auto B = load<Shape::kOwn>(rows + slot * 2 * Shape::kStates);
        const auto C = load<Shape::kOwn>(rows + slot * 2 * Shape::kStates + Shape::kStates);
        float y = 0.0f;
        MMVIM_UNROLL
        for (int i = 0; i < Shape::kOwn; ++i) {
          own.h[i] = multiply_add(exp2_fast(dt.at[0] * own.A[i]), own.h[i], dt.at[1] * B.at[i]);
          y = multiply_add(own.h[i], C.at[i], y);
        }
        sums[slot * Shape::kThreads] = y;
      }
      wait_for_copies();
    }

    // Sums over the states, skip connection, the other direction, gate. Done by one direction of
    // threads, or by both for a tile of their own each.
    MMVIM_HD void finish(const Thread<Shape>& at, Registers& own, int step, int direction) const {
      if (at.direction != direction || at.k >= block.count) return;
      const Direction& scan = p.scans[direction];
      const Tile tile(p, scan, step);
      const Space<Shape> space = this->space(at);
      const int64_t channel = block.channel(p) + at.k;
      const float D = scan.D ? scan.D[channel] : 0.0f;
      const T* u = space.raw(step, kU, kRawTiles);
      const T* z = space.raw(step, kZ, kRawTiles);
      const float* sums = space.floats(layout.sums) + at.s * Shape::kThreads + at.k;
      // Of slot s, and how far it is to the thread's next slot.
      const int row = tile.row(at.s), next_row = tile.sign() * Shape::kSplit;
      const int place = row * Shape::kChannels + at.k, next = next_row * Shape::kChannels;
      float y[Shape::kSlots];
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kSlots; ++j) {
        y[j] = D * to_float(u[place + j * next]);
        MMVIM_UNROLL
        for (int i = 0; i < Shape::kSplit; ++i) {  // each begins elsewhere: another bank
          const int s = (at.s + i) % Shape::kSplit;
          y[j] += sums[j * Shape::kSplit * Shape::kThreads + s * Shape::kChannels];
        }
      }
      float* partial = own.partial + tile.offset(p.all_channels());
      const int64_t next_partial = next_row * p.all_channels();
      const auto given = [&](int j) { return row + j * next_row < tile.count; };
      if (!comes_second(p, step, direction)) {
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j, partial += next_partial)
          if (given(j)) *partial = y[j];
        return;
      }
      if (kReadsAhead && p.directions == 2 && !meet(p, step)) {
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j) y[j] += own.other[j];
      } else if (p.directions == 2) {
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j, partial += next_partial)
          if (given(j)) y[j] += *partial;
      }
      if (p.z.data) {
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kSlots; ++j) y[j] *= silu(to_float(z[place + j * next]));
      }
      char* out = own.out + tile.offset(p.out.token);
      const int64_t next_out = next_row * p.out.token;
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kSlots; ++j, out += next_out)
        if (given(j)) *reinterpret_cast<T*>(out) = from_float<T>(p.scale * y[j]);
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
