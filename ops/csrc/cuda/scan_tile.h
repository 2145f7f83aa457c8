// How a tile comes into shared memory: its layout there, the copies, and the steps of its tokens.

#pragma once

#include "scan.h"

namespace mmvim::cuda {

// Four adjacent numbers, packed as they lie in memory: in half precision two share a register while
// they wait. (Numbers has them apart.)
template <class T>
struct alignas(4 * sizeof(T)) Four {
  uint32_t words[sizeof(T)];

  MMVIM_HD void set(int i, T value) {
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    words[i * sizeof(T) / 4] |= bits << (i * sizeof(T) % 4 * 8);
  }
  MMVIM_HD float get(int i) const {
    const uint32_t bits = words[i * sizeof(T) / 4] >> (i * sizeof(T) % 4 * 8);
    T value;
    memcpy(&value, &bits, sizeof(T));
    return to_float(value);
  }
};

// Floats from a slot's B and C to the next slot's: what is stored for two of them at once comes to
// lie in different banks.
template <class Shape>
constexpr int kRow = 2 * Shape::kStates + (Shape::kOwn < 4 ? 4 : Shape::kOwn);

template <class Shape>
constexpr int kRawTileBytes =
    Shape::kTile * Shape::kChannels * static_cast<int>(sizeof(typename Shape::T));

// Where things lie in the shared memory of one direction: bytes from its start. What has the same
// size in every problem comes first, so that its place is known when a kernel is compiled.
struct TileLayout {
  int rows = 0;        // (32, kRow): B and C, (kSplit, 2, kOwn)
  int steps = 0;       // (16, kChannels, 2) of (dt, dt u)
  int raw = 0;         // T: (2, raw_tiles, 32, kChannels)
  int raw_tiles = 0;   // of a step
  int rank_fours = 0;  // of dt, padded
  int dt = 0;          // (rank_fours, 32, 4)
  int weight = 0;      // (rank_fours, kChannels, 4)
  int bytes = 0;

  MMVIM_HD int take(int count) {
    const int at = bytes;
    bytes += ceil_div(count, 16) * 16;
    return at;
  }
  template <class Shape>
  MMVIM_HD void take_fixed() {
    rows = take(4 * Shape::kTile * kRow<Shape>);
    steps = take(8 * Shape::kTile * Shape::kChannels);
  }
  // `tiles`: how many of (32, kChannels) numbers a step reads.
  template <class Shape>
  MMVIM_HD void take_rest(const Problem& p, int tiles) {
    raw_tiles = tiles;
    raw = take(2 * raw_tiles * kRawTileBytes<Shape>);
    rank_fours = ceil_div(p.rank, 4);
    dt = take(16 * Shape::kTile * rank_fours);
    weight = take(16 * rank_fours * Shape::kChannels);
  }
};

// --- a tile's phases ---

// Where a thread begins to copy a tile of the block's own channels of a tensor of numbers N.
template <class Shape, class N = typename Shape::T>
MMVIM_HD char* own_tile_start(const Problem& p, const Rows& rows, const Block<Shape>& block,
                              int step, int lane) {
  const int slot = lane >> rows.copies_log2;
  const int column = (lane & ((1 << rows.copies_log2) - 1)) * rows.bytes;
  return rows.at(block.b, slot) + step * rows.tile +
         block.channel(p) * sizeof(N) + column;
}

template <class Shape, int Bytes>
MMVIM_HD void copy_rows(const Rows& rows, const char* from, const Tile& tile, int row_bytes,
                        int valid_bytes, int lane, char* to) {
  const int apart = Shape::kThreads >> rows.copies_log2;
  const int column = (lane & ((1 << rows.copies_log2) - 1)) * Bytes;
  int slot = lane >> rows.copies_log2;
  char* target = to + slot * row_bytes + column;
  MMVIM_UNROLL_BY(1)
  for (; slot < Shape::kTile; slot += apart) {
    const bool given = tile.given(slot) && column < valid_bytes;
    if constexpr (Bytes >= 4) {
      copy_async<Bytes>(target, from, given);
    } else {  // what is not even aligned to four bytes
      *reinterpret_cast<uint16_t*>(target) =
          given ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
    }
    from += apart * rows.token;
    target += apart * row_bytes;
  }
}

// Starts to copy a tile of the block's own channels; what there is not becomes zero. `from`: where
// the thread begins.
template <class Shape, class N>
MMVIM_HD void copy_own_tile(const Rows& rows, const char* from, const Block<Shape>& block,
                            const Tile& tile, int lane, N* raw) {
  constexpr int row_bytes = Shape::kChannels * static_cast<int>(sizeof(N));
  constexpr int most = row_bytes < 16 ? row_bytes : 16;  // bytes at once
  const int valid = block.count * static_cast<int>(sizeof(N));
  char* to = reinterpret_cast<char*>(raw);
  if (Shape::kVim || rows.bytes == most) {  // as almost always: straight code
    constexpr int in_a_row = row_bytes / most, apart = Shape::kThreads / in_a_row;
    const int slot = lane / in_a_row, column = lane % in_a_row * most;
    MMVIM_UNROLL
    for (int i = 0; i < ceil_div(Shape::kTile, apart); ++i, from += apart * rows.token) {
      if (apart > Shape::kTile && slot >= Shape::kTile) break;
      copy_async<most>(to + (slot + i * apart) * row_bytes + column, from,
                       tile.given(slot + i * apart) && column < valid);
    }
    return;
  }
  switch (rows.bytes) {
    case 8: copy_rows<Shape, 8>(rows, from, tile, row_bytes, valid, lane, to); break;
    case 4: copy_rows<Shape, 4>(rows, from, tile, row_bytes, valid, lane, to); break;
    default: copy_rows<Shape, 2>(rows, from, tile, row_bytes, valid, lane, to);
  }
}

// A tile's view of shared memory.
template <class Shape>
struct Space {
  using T = typename Shape::T;
  const TileLayout& layout;
  char* base;  // of the direction

  MMVIM_HD float* floats(int at) const { return reinterpret_cast<float*>(base + at); }
  MMVIM_HD float* dt() const { return floats(layout.dt); }
  MMVIM_HD float* weight() const { return floats(layout.weight); }
  // The states of B that a thread has in a slot; those of C follow.
  MMVIM_HD float* row(int slot, int s) const {
    return floats(layout.rows) + slot * kRow<Shape> + s * 2 * Shape::kOwn;
  }
  // (dt, dt u) of a slot; those of an odd slot follow those of the one before.
  MMVIM_HD float* step(int slot, int k) const {
    return floats(layout.steps) + (slot / 2 * Shape::kChannels + k) * 4 + slot % 2 * 2;
  }
  // The raw tile `which` of a step's copy.
  MMVIM_HD T* raw(int copy, int which) const {
    return reinterpret_cast<T*>(base + layout.raw +
                                (copy % 2 * layout.raw_tiles + which) * kRawTileBytes<Shape>);
  }
};

// The weights of dt_proj, once a block.
template <class Shape>
MMVIM_HD void load_weight(const Problem& p, const Direction& scan, const Block<Shape>& block,
                          const Space<Shape>& space, int lane) {
  MMVIM_UNROLL_BY(1)
  for (int i = lane; i < 4 * space.layout.rank_fours * Shape::kChannels; i += Shape::kThreads) {
    const int r = i / Shape::kChannels, k = i % Shape::kChannels;
    const bool given = r < p.rank && k < block.count;
    const int64_t at = (block.channel(p) + k) * p.rank + r;
    space.weight()[(r / 4 * Shape::kChannels + k) * 4 + r % 4] = given ? scan.dt_weight[at] : 0.0f;
  }
}

// A thread's share of the rows of dt, B and C, on the way from global memory to shared memory: read
// while the tile before is worked on, stored as floats once that is done. What a large rank has
// beyond it is read when it is stored.
template <class Shape>
struct RowsAhead {
  using T = typename Shape::T;
  static constexpr int kTile = Shape::kTile;
  static constexpr bool kOne = Shape::kStates == 1;           // in place of four: half the threads
  static constexpr int kFours = kOne ? 1 : Shape::kStates / 4;  // of B and of C, a row
  static constexpr int kOwnFours = ceil_div(kFours * kTile, Shape::kThreads);  // a thread
  static constexpr int kRowsApart = Shape::kThreads / kFours;
  static constexpr int kRankFours = kTile / 16;                       // of dt, a thread
  static constexpr int kApart = Shape::kThreads / kTile;              // of them in a row
  static constexpr int kFourBytes = 4 * static_cast<int>(sizeof(T));

  const char *dt_at, *B_at, *C_at;  // where the thread begins in the tile it has read
  Four<T> dt[kRankFours], B[kOwnFours], C[kOwnFours] = {};

  MMVIM_HD void begin(const Problem& p, const Direction& scan, const Block<Shape>& block, int step,
                      int lane) {
    const auto start = [&](const Rows& rows, int slot, int four) {
      return rows.at(block.b, slot) + step * rows.tile + block.group * rows.group +
             four * kFourBytes;
    };
    dt_at = nullptr;
    if (Asks<Shape>::projection(p)) dt_at = start(scan.dt, lane % kTile, lane / kTile);
    B_at = start(scan.B, lane / kFours, lane % kFours);
    C_at = start(scan.C, lane / kFours, lane % kFours);
  }

  // To a tile that is so many further.
  MMVIM_HD void move(const Direction& scan, int tiles) {
    dt_at += tiles * scan.dt.tile;
    B_at += tiles * scan.B.tile;
    C_at += tiles * scan.C.tile;
  }

  // Without `with_C`, C stays what it was.
  MMVIM_HD void read(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                     bool with_C = true) {
    if (Asks<Shape>::fours(scan)) {
      read_fours<true>(p, scan, tile, lane, with_C);
    } else {
      read_fours<false>(p, scan, tile, lane, with_C);
    }
  }

  MMVIM_HD void store(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                      const Space<Shape>& space) const {
    const int fours = space.layout.rank_fours;
    float* to = space.dt() + lane * 4;
    MMVIM_UNROLL
    for (int j = 0; j < kRankFours; ++j)
      if (lane / kTile + j * kApart < fours)
        cuda::store(to + j * Shape::kThreads * 4, floats(dt[j]));
    MMVIM_UNROLL_BY(1)
    for (int j = kRankFours; lane / kTile + j * kApart < fours; ++j)
      cuda::store(to + j * Shape::kThreads * 4, floats(read_dt<false>(p, scan, tile, lane, j)));
    if constexpr (kOne) {
      if (lane < kTile) cuda::store<2>(space.row(lane, 0), {{B[0].get(0), C[0].get(0)}});
      return;
    }
    // Of state n, the first of four, and how far it is to those of C.
    const int n = lane % kFours * 4;
    to = space.row(lane / kFours, 0) + n / Shape::kOwn * 2 * Shape::kOwn + n % Shape::kOwn;
    constexpr int next = kRowsApart * kRow<Shape>;
    MMVIM_UNROLL
    for (int j = 0; j < kOwnFours; ++j, to += next) {
      const Floats<4> b = floats(B[j]), c = floats(C[j]);
      if constexpr (Shape::kOwn >= 4) {
        cuda::store(to, b);
        cuda::store(to + Shape::kOwn, c);
      } else if constexpr (Shape::kOwn == 2) {
        cuda::store<4>(to, {{b.at[0], b.at[1], c.at[0], c.at[1]}});
        cuda::store<4>(to + 4, {{b.at[2], b.at[3], c.at[2], c.at[3]}});
      } else {
        cuda::store<4>(to, {{b.at[0], c.at[0], b.at[1], c.at[1]}});
        cuda::store<4>(to + 4, {{b.at[2], c.at[2], b.at[3], c.at[3]}});
      }
    }
  }

 private:
  template <bool Whole>
  MMVIM_HD void read_fours(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                           bool with_C) {
    if (Asks<Shape>::projection(p)) {
      MMVIM_UNROLL
      for (int j = 0; j < kRankFours; ++j) dt[j] = read_dt<Whole>(p, scan, tile, lane, j);
    }
    const int slot = lane / kFours;
    const char *B_from = B_at, *C_from = C_at;
    MMVIM_UNROLL
    for (int j = 0; j < kOwnFours; ++j) {
      if constexpr (kOne) {
        const bool given = lane < kTile && tile.given(lane);
        B[j] = read_one(B_from, given);
        if (with_C) C[j] = read_one(C_from, given);
        continue;
      }
      const int columns = tile.given(slot + j * kRowsApart) ? p.states - lane % kFours * 4 : 0;
      B[j] = read_four<Whole>(scan.B, B_from, columns);
      if (with_C) C[j] = read_four<Whole>(scan.C, C_from, columns);
      B_from += kRowsApart * scan.B.token;
      C_from += kRowsApart * scan.C.token;
    }
  }
  // As far as there are `columns`; they need not be aligned, unless they come in `Whole` fours.
  template <bool Whole>
  static MMVIM_HD Four<T> read_four(const Rows& rows, const char* from, int columns) {
    Four<T> four = {};
    if (Whole || (columns >= 4 && rows.alignment >= kFourBytes)) {
      if (columns > 0) {
        require_aligned(from, kFourBytes);
        four = *reinterpret_cast<const Four<T>*>(from);
      }
    } else {
      MMVIM_UNROLL
      for (int j = 0; j < 4; ++j)
        if (j < columns) four.set(j, reinterpret_cast<const T*>(from)[j]);
    }
    return four;
  }
  static MMVIM_HD Four<T> read_one(const char* from, bool given) {
    Four<T> four = {};
    if (given) four.set(0, *reinterpret_cast<const T*>(from));
    return four;
  }
  static MMVIM_HD Floats<4> floats(const Four<T>& four) {
    Floats<4> floats;
    MMVIM_UNROLL
    for (int j = 0; j < 4; ++j) floats.at[j] = four.get(j);
    return floats;
  }
  template <bool Whole>
  MMVIM_HD Four<T> read_dt(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                           int j) const {
    const int column = (lane / kTile + j * kApart) * 4;
    return read_four<Whole>(scan.dt, dt_at + j * kApart * kFourBytes,
                            tile.given(lane % kTile) ? p.rank - column : 0);
  }
};

// The steps of a thread's slots: dt_proj, bias and softplus, in parallel over tokens, so that the
// recurrence has nothing to do but to recur. `each(j, u, slope)` gets the input and the derivative
// of softplus of the j-th of them.
template <class Shape, class Each>
MMVIM_HD void prepare_steps(const Problem& p, const Tile& tile, const Space<Shape>& space,
                            const Thread<Shape>& at, float bias, const typename Shape::T* raw_u,
                            const typename Shape::T* raw_delta, const Each& each) {
  const int place = at.slot() * Shape::kChannels + at.k;  // in a raw tile
  float delta[Shape::kSlots];
  MMVIM_UNROLL
  for (int j = 0; j < Shape::kSlots; ++j) delta[j] = bias;
  if (!Asks<Shape>::projection(p)) {
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kSlots; ++j)
      delta[j] += to_float(raw_delta[place + j * Shape::kChannels]);
  }
  const float* rows = space.dt() + at.slot() * 4;
  const float* weight = space.weight() + at.k * 4;
  MMVIM_UNROLL_BY(1)
  for (int r = 0; r < space.layout.rank_fours; ++r) {
    const Floats<4> w = load<4>(weight);
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kSlots; ++j) {
      const Floats<4> dt = load<4>(rows + j * 4);
      MMVIM_UNROLL
      for (int i = 0; i < 4; ++i) delta[j] = multiply_add(dt.at[i], w.at[i], delta[j]);
    }
    rows += Shape::kTile * 4;
    weight += Shape::kChannels * 4;
  }
  MMVIM_UNROLL
  for (int j = 0; j < Shape::kSlots; j += 2) {
    Floats<4> steps;
    MMVIM_UNROLL
    for (int i = 0; i < 2; ++i) {
      float slope = 1.0f;
      const float positive = softplus<typename Shape::T>(delta[j + i], &slope);
      const float dt = Asks<Shape>::softplus(p) ? positive : delta[j + i];
      const float u = to_float(raw_u[place + (j + i) * Shape::kChannels]);
      steps.at[2 * i] = tile.given(at.slot() + j + i) ? dt : 0.0f;
      steps.at[2 * i + 1] = steps.at[2 * i] * u;
      each(j + i, u, Asks<Shape>::softplus(p) ? slope : 1.0f);
    }
    store(space.step(at.slot() + j, at.k), steps);
  }
}

}  // namespace mmvim::cuda
