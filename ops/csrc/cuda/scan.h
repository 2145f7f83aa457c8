// What the forward and the backward pass of a scan share: the problem, and how it is cut into
// blocks, tiles and threads.
//
// A block takes kChannels adjacent channels of one sequence, both directions of them, and walks
// over the sequence in tiles of 32 tokens: the threads of the forward scan from its first tile to
// its last, those of the reverse scan from its last to its first. Each channel has kSplit threads
// a direction, each with kOwn of the states.
//
// A phase is a function of a thread's number, its registers and shared memory. Between two phases
// all threads of a block meet; within one, nobody reads what another thread writes. So a phase may
// run as a kernel between two barriers, or in a loop over threads, in any order.

#pragma once

#include "portable.h"

namespace mmvim::cuda {

constexpr int kTile = 32;
constexpr int kMostStates = 32;
constexpr int kMostRank = 128;

// How the threads of a block share its work. States is the number a kernel is compiled for; where
// it is `padded`, any smaller number runs as well, with states that stay zero.
template <class T_, int States, int Split, bool Padded>
struct Shape {
  using T = T_;
  static constexpr int kStates = States;
  static constexpr int kSplit = Split;
  static constexpr int kChannels = 64 / Split;
  static constexpr int kOwn = States / Split;
  static constexpr bool kPadded = Padded;
  static constexpr int kThreads = 64;                // of one direction
  static constexpr int kSlots = kTile / Split;       // tokens of a tile a thread prepares
};

// A tensor of rows (B, L, groups, columns), or (B, L, columns) with groups of adjacent columns;
// strides are bytes, and columns are adjacent.
struct Rows {
  char* data = nullptr;
  int64_t sequence = 0, token = 0, group = 0;
  int alignment = 0;  // of every row of every group, in bytes; 16 at most
  // How a tile of a block's own channels is copied: in so many bytes at once, and the logarithm of
  // how many times a row.
  int bytes = 0;
  int copies_log2 = 0;

  // Chooses both for rows of so many bytes, a power of two.
  void fit(int row_bytes) {
    bytes = alignment < row_bytes ? alignment : row_bytes;
    copies_log2 = 0;
    while (bytes << copies_log2 < row_bytes) ++copies_log2;
  }
  MMVIM_HD char* at(int64_t b, int64_t t) const { return data + b * sequence + t * token; }
};

// One direction of a scan.
struct Direction {
  Rows u;
  Rows delta;        // (B, L, E), not given where rank > 0
  Rows dt, B, C;     // dt: `rank` columns, multiplied by dt_weight; B, C: `states` columns
  const float* A = nullptr;          // (E, states)
  const float* dt_weight = nullptr;  // (E, rank)
  const float* D = nullptr;          // (E), or null
  const float* bias = nullptr;       // (E), or null
  bool reverse = false;
};

struct Problem {
  Direction scans[2];
  int directions = 1;
  int groups = 1;
  int channels = 0;  // of a group
  int rank = 0;
  int states = 0;
  bool softplus = false;
  float scale = 1.0f;
  int64_t batch = 0, length = 0;
  int tiles = 0;
  int tiles_a_chunk = 0;
  Rows z;                         // no data: no gate
  // The state before every chunk, in the order of the scan: (chunks, B, groups * directions,
  // states, channels); a chunk is counted in whole tiles.
  float* checkpoints = nullptr;
  // (B, L, groups * channels): what the direction that comes first to a tile leaves for the other.
  float* partial = nullptr;

  MMVIM_HD int64_t all_channels() const { return static_cast<int64_t>(groups) * channels; }
};

// The part of a problem that is a block's.
template <class Shape>
struct Block {
  int64_t b;
  int group, first, count;  // channels, from the first of the group

  MMVIM_HD Block(const Problem& p, int64_t index) {
    const int per_group = ceil_div(p.channels, Shape::kChannels);
    const int64_t rest = index / per_group;
    first = static_cast<int>(index % per_group) * Shape::kChannels;
    group = static_cast<int>(rest % p.groups);
    b = rest / p.groups;
    count = p.channels - first < Shape::kChannels ? p.channels - first : Shape::kChannels;
  }
  static MMVIM_HD int64_t number(const Problem& p) {
    return p.batch * p.groups * ceil_div(p.channels, Shape::kChannels);
  }
  // The first of the block's channels among those of all groups.
  MMVIM_HD int64_t channel(const Problem& p) const {
    return static_cast<int64_t>(group) * p.channels + first;
  }
};

// A tile in the order of the scan: slot i of shared memory belongs to the i-th of 32 tokens, be
// there so many or not. Slots of tokens beyond the last hold zeros, which leave a state as it is.
struct Tile {
  uint32_t first;  // token
  int count;       // of tokens
  bool reverse;

  MMVIM_HD Tile(const Problem& p, const Direction& scan, int step) {
    reverse = scan.reverse;
    first = static_cast<uint32_t>(reverse ? p.tiles - 1 - step : step) * kTile;
    const uint32_t left = static_cast<uint32_t>(p.length) - first;
    count = left < kTile ? static_cast<int>(left) : kTile;
  }
  // How far the tile is from the first one, of rows that are so far apart.
  MMVIM_HD int64_t offset(int64_t token) const { return static_cast<int64_t>(first) * token; }
  // The row of a slot, and the slot of a row.
  MMVIM_HD int row(int slot) const { return reverse ? kTile - 1 - slot : slot; }
  // How the row changes from a slot to the next.
  MMVIM_HD int sign() const { return reverse ? -1 : 1; }
};

// Who comes to a tile first leaves a partial result there; who comes second finishes it. `step`
// counts the tiles a direction has done before. With an odd number of tiles both come to the one in
// the middle at once, and the reverse scan is the second there.
MMVIM_HD bool meet(const Problem& p, int step) {
  return p.directions == 2 && 2 * step == p.tiles - 1;
}
MMVIM_HD bool comes_second(const Problem& p, int step, int direction) {
  return p.directions == 1 || 2 * step > p.tiles - 1 || (meet(p, step) && direction == 1);
}

// Chooses how the tiles of a problem are copied.
template <class Shape>
void fit_copies(Problem& p) {
  const int row_bytes = Shape::kChannels * static_cast<int>(sizeof(typename Shape::T));
  for (int d = 0; d < p.directions; ++d) {
    p.scans[d].u.fit(row_bytes);
    if (p.rank == 0) p.scans[d].delta.fit(row_bytes);
  }
  if (p.z.data) p.z.fit(row_bytes);
}

// A thread's place in a block.
template <class Shape>
struct Thread {
  int direction, lane, k, s;  // lane: within the direction; k: channel; s: which of the states

  MMVIM_HD explicit Thread(int tid)
      : direction(tid / Shape::kThreads), lane(tid % Shape::kThreads),
        k(lane % Shape::kChannels), s(lane / Shape::kChannels) {}
};

// The place of a chunk's first state of a thread in `checkpoints`; the next is `channels` further.
template <class Shape>
MMVIM_HD int64_t checkpoint_place(const Problem& p, const Block<Shape>& block, int chunk,
                                  const Thread<Shape>& at) {
  const int64_t outer = static_cast<int64_t>(p.groups) * p.directions;
  const int which = p.directions == 2 ? at.direction : block.group;
  const int64_t row = (static_cast<int64_t>(chunk) * p.batch + block.b) * outer + which;
  return (row * p.states + at.s * Shape::kOwn) * p.channels + block.first + at.k;
}

}  // namespace mmvim::cuda
