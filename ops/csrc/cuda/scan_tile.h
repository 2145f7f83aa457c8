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

// Where things lie in the shared memory of one direction: bytes from its start.
struct TileLayout {
  int rank_fours = 0;  // of dt, padded
  int raw_tiles = 0;   // T: (2, tiles of a step, 32, kChannels)
  int dt = 0;          // (rank_fours, 32, 4)
  int rows = 0;        // (32, 2 kStates): B, C
  int steps = 0;       // (32, kChannels) of (dt, dt u)
  int weight = 0;      // (rank_fours, kChannels, 4)
  int bytes = 0;

  MMVIM_HD int take(int count) {
    const int at = bytes;
    bytes += ceil_div(count, 16) * 16;
    return at;
  }
};

template <class Shape>
constexpr int kRawTileBytes =
    kTile * Shape::kChannels * static_cast<int>(sizeof(typename Shape::T));

// `raw_tiles`: how many of (32, kChannels) a step reads.
template <class Shape>
MMVIM_HD TileLayout tile_layout(const Problem& p, int raw_tiles) {
  TileLayout layout;
  layout.rank_fours = ceil_div(p.rank, 4);
  layout.raw_tiles = layout.take(2 * raw_tiles * kRawTileBytes<Shape>);
  layout.dt = layout.take(16 * kTile * layout.rank_fours);
  layout.rows = layout.take(4 * kTile * 2 * Shape::kStates);
  layout.steps = layout.take(8 * kTile * Shape::kChannels);
  layout.weight = layout.take(16 * layout.rank_fours * Shape::kChannels);
  return layout;
}

// --- a tile's phases ---

// Where a thread begins to copy the first tile of the block's own channels of a tensor.
template <class Shape>
MMVIM_HD const char* own_tile_start(const Problem& p, const Rows& rows, const Block<Shape>& block,
                                    int lane) {
  const int row = lane >> rows.copies_log2;
  const int column = (lane & ((1 << rows.copies_log2) - 1)) * rows.bytes;
  return rows.at(block.b, row) + block.channel(p) * sizeof(typename Shape::T) + column;
}

template <class Shape, int Bytes>
MMVIM_HD void copy_rows(const Rows& rows, const char* from, int count, int valid_bytes, int lane,
                        char* to) {
  constexpr int row_bytes = Shape::kChannels * static_cast<int>(sizeof(typename Shape::T));
  const int apart = Shape::kThreads >> rows.copies_log2;
  const int column = (lane & ((1 << rows.copies_log2) - 1)) * Bytes;
  int row = lane >> rows.copies_log2;
  char* target = to + row * row_bytes + column;
  MMVIM_UNROLL_BY(1)
  for (; row < kTile; row += apart) {
    const bool given = row < count && column < valid_bytes;
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

// Starts to copy a tile of the block's own channels; what there is not becomes zero.
template <class Shape>
MMVIM_HD void copy_own_tile(const Rows& rows, const char* start, const Block<Shape>& block,
                            const Tile& tile, int lane, typename Shape::T* raw) {
  const char* from = start + tile.offset(rows.token);
  const int valid = block.count * static_cast<int>(sizeof(typename Shape::T));
  char* to = reinterpret_cast<char*>(raw);
  switch (rows.bytes) {
    case 16: copy_rows<Shape, 16>(rows, from, tile.count, valid, lane, to); break;
    case 8: copy_rows<Shape, 8>(rows, from, tile.count, valid, lane, to); break;
    case 4: copy_rows<Shape, 4>(rows, from, tile.count, valid, lane, to); break;
    default: copy_rows<Shape, 2>(rows, from, tile.count, valid, lane, to);
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
  MMVIM_HD float* rows() const { return floats(layout.rows); }
  MMVIM_HD float* steps() const { return floats(layout.steps); }
  MMVIM_HD float* weight() const { return floats(layout.weight); }
  // The raw tile `which` of a step's copy.
  MMVIM_HD T* raw(int copy, int which, int tiles) const {
    return reinterpret_cast<T*>(base + layout.raw_tiles +
                                (copy % 2 * tiles + which) * kRawTileBytes<Shape>);
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
  static constexpr int kFours = Shape::kStates / 4;                   // of B and of C, a row
  static constexpr int kOwnFours = kFours * kTile / Shape::kThreads;  // of them, a thread
  static constexpr int kRowsApart = Shape::kThreads / kFours;
  static constexpr int kRankFours = 2;                                // of dt, a thread
  static constexpr int kApart = Shape::kThreads / kTile;              // of them in a row

  // Where the thread begins in the first tile.
  const char *dt_start, *B_start, *C_start;
  Four<T> dt[kRankFours], B[kOwnFours], C[kOwnFours];

  MMVIM_HD void begin(const Problem& p, const Direction& scan, const Block<Shape>& block,
                      int lane) {
    const auto start = [&](const Rows& rows, int row, int four) {
      return rows.at(block.b, row) + block.group * rows.group +
             four * 4 * static_cast<int>(sizeof(T));
    };
    dt_start = p.rank > 0 ? start(scan.dt, lane % kTile, lane / kTile) : nullptr;
    B_start = start(scan.B, lane / kFours, lane % kFours);
    C_start = start(scan.C, lane / kFours, lane % kFours);
  }

  MMVIM_HD void read(const Problem& p, const Direction& scan, const Tile& tile, int lane) {
    if (p.rank > 0) {
      MMVIM_UNROLL
      for (int j = 0; j < kRankFours; ++j) dt[j] = read_dt(p, scan, tile, lane, j);
    }
    const int row = lane / kFours;
    const char *B_from = B_start + tile.offset(scan.B.token);
    const char *C_from = C_start + tile.offset(scan.C.token);
    MMVIM_UNROLL
    for (int j = 0; j < kOwnFours; ++j) {
      const bool given = row + j * kRowsApart < tile.count;
      const int columns = given ? states(p) - lane % kFours * 4 : 0;
      B[j] = read_four(scan.B, B_from, columns);
      C[j] = read_four(scan.C, C_from, columns);
      B_from += kRowsApart * scan.B.token;
      C_from += kRowsApart * scan.C.token;
    }
  }

  MMVIM_HD void store(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                      const Space<Shape>& space) const {
    const int fours = space.layout.rank_fours;
    float* to = space.dt() + (lane / kTile * kTile + tile.row(lane % kTile)) * 4;
    MMVIM_UNROLL
    for (int j = 0; j < kRankFours; ++j)
      if (lane / kTile + j * kApart < fours) store_four(dt[j], to + j * Shape::kThreads * 4);
    MMVIM_UNROLL_BY(1)
    for (int j = kRankFours; lane / kTile + j * kApart < fours; ++j)
      store_four(read_dt(p, scan, tile, lane, j), to + j * Shape::kThreads * 4);
    constexpr int row_floats = 2 * Shape::kStates;
    to = space.rows() + tile.row(lane / kFours) * row_floats + lane % kFours * 4;
    const int next = tile.sign() * kRowsApart * row_floats;
    MMVIM_UNROLL
    for (int j = 0; j < kOwnFours; ++j) {
      store_four(B[j], to + j * next);
      store_four(C[j], to + j * next + Shape::kStates);
    }
  }

 private:
  static MMVIM_HD int states(const Problem& p) {
    return Shape::kPadded ? p.states : Shape::kStates;
  }
  // As far as there are `columns`; they need not be aligned.
  static MMVIM_HD Four<T> read_four(const Rows& rows, const char* from, int columns) {
    Four<T> four = {};
    if (columns >= 4 && rows.alignment >= static_cast<int>(sizeof(four))) {
      require_aligned(from, sizeof(four));
      four = *reinterpret_cast<const Four<T>*>(from);
    } else {
      MMVIM_UNROLL
      for (int j = 0; j < 4; ++j)
        if (j < columns) four.set(j, reinterpret_cast<const T*>(from)[j]);
    }
    return four;
  }
  static MMVIM_HD void store_four(const Four<T>& four, float* to) {
    Floats<4> floats;
    MMVIM_UNROLL
    for (int j = 0; j < 4; ++j) floats.at[j] = four.get(j);
    cuda::store(to, floats);
  }
  MMVIM_HD Four<T> read_dt(const Problem& p, const Direction& scan, const Tile& tile, int lane,
                           int j) const {
    const int column = (lane / kTile + j * kApart) * 4;
    const char* from = dt_start + tile.offset(scan.dt.token) +
                       j * kApart * 4 * static_cast<int>(sizeof(T));
    return read_four(scan.dt, from, lane % kTile < tile.count ? p.rank - column : 0);
  }
};

// The steps of a thread's slots s, s + kSplit, ...: dt_proj, bias and softplus, in parallel over
// tokens, so that the recurrence has nothing to do but to recur. `each(j, slope)` gets the
// derivative of softplus for the j-th of them.
template <class Shape, class Each>
MMVIM_HD void prepare_steps(const Problem& p, const Direction& scan, const Block<Shape>& block,
                            const Tile& tile, const Space<Shape>& space, const Thread<Shape>& at,
                            const typename Shape::T* raw_u, const typename Shape::T* raw_delta,
                            const Each& each) {
  const float bias =
      scan.bias && at.k < block.count ? scan.bias[block.channel(p) + at.k] : 0.0f;
  // Of slot s, and how far it is to the thread's next slot.
  const int row = tile.row(at.s), place = row * Shape::kChannels + at.k;
  const int next = tile.sign() * Shape::kSplit * Shape::kChannels;
  float delta[Shape::kSlots];
  MMVIM_UNROLL
  for (int j = 0; j < Shape::kSlots; ++j) delta[j] = bias;
  if (p.rank == 0) {
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kSlots; ++j) delta[j] += to_float(raw_delta[place + j * next]);
  }
  const float* rows = space.dt() + at.s * 4;
  const float* weight = space.weight() + at.k * 4;
  MMVIM_UNROLL_BY(1)
  for (int r = 0; r < space.layout.rank_fours; ++r) {
    const Floats<4> w = load<4>(weight);
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kSlots; ++j) {
      const Floats<4> dt = load<4>(rows + j * Shape::kSplit * 4);
      MMVIM_UNROLL
      for (int i = 0; i < 4; ++i) delta[j] = multiply_add(dt.at[i], w.at[i], delta[j]);
    }
    rows += kTile * 4;
    weight += Shape::kChannels * 4;
  }
  float* steps = space.steps() + at.lane * 2;  // of slot s, channel k
  MMVIM_UNROLL
  for (int j = 0; j < Shape::kSlots; ++j) {
    float slope = 1.0f;
    const float positive = softplus<typename Shape::T>(delta[j], &slope);
    const bool given = row + j * tile.sign() * Shape::kSplit < tile.count;
    const float dt = given ? (p.softplus ? positive : delta[j]) : 0.0f;
    const float u = to_float(raw_u[place + j * next]);
    store<2>(steps + j * Shape::kThreads * 2, {{dt, dt * u}});
    each(j, p.softplus ? slope : 1.0f);
  }
}

}  // namespace mmvim::cuda
