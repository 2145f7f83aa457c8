// What the forward and the backward pass of a scan share: the problem, and how it is cut into
// blocks, tiles and threads.
//
// A block takes kChannels adjacent channels of one sequence, both directions of them, and walks
// over the sequence in tiles of 32 tokens: the threads of the forward scan from its first tile to
// its last, those of the reverse scan from its last to its first. Each channel has kSplit threads
// a direction, each with kOwn of the states.
//
// Tokens are counted in the order of their scan: the rows of a reverse scan are turned around
// before a kernel begins (`orient`), and nothing in it knows of directions.
//
// A phase is a function of a thread's number, its registers and shared memory. Between two phases
// all threads of a block meet; within one, nobody reads what another thread writes. So a phase may
// run as a kernel between two barriers, or in a loop over threads, in any order.

#pragma once

#include "portable.h"

namespace mmvim::cuda {

constexpr int kGrid = 32;  // tokens: a tile has so many, or a multiple; chunks are counted in them
constexpr int kMostStates = 32;
constexpr int kMostRank = 128;

// How the threads of a block share its work. States is the number a kernel is compiled for; where
// it is `padded`, any smaller number runs as well, with states that stay zero. A kernel for `Vim`
// serves what `serves_vim` says and knows it when it is compiled: it need not ask.
template <class T_, int States, int Split, bool Padded, int Tile = kGrid, bool Vim = false>
struct Shape {
  using T = T_;
  static constexpr int kStates = States;
  static constexpr int kSplit = Split;
  static constexpr int kChannels = 64 / Split;
  static constexpr int kOwn = States / Split;
  static constexpr bool kPadded = Padded, kVim = Vim;
  static constexpr int kThreads = 64;                // of one direction
  static constexpr int kTile = Tile;                 // tokens
  static constexpr int kSlots = kTile / Split;       // tokens of a tile a thread prepares
};

// Instructions of a thread for each token: so many for each of its states, for its share of what is
// done once a channel, and in any case. Fitted to counts of what the machine code that nvcc 13.0
// made for sm_90 executes; no GPU has confirmed that they predict times.
struct Cost {
  double state, channel, token;
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
  int64_t tile = 0;  // from a tile to the next

  // Chooses how tiles are copied for rows of so many bytes, a power of two.
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
  Rows delta;                // (B, L, E), not given where rank > 0
  Rows dt, B, C;             // dt: `rank` columns, for dt_weight; B, C: `states` columns
  bool whole_fours = false;  // columns of dt, B and C can be read four at a time, without a rest
  Rows z;                    // the same for both scans; no data: no gate
  // (B, L, groups * channels), float, the same for both scans: what the direction that comes first
  // to a tile leaves for the other.
  Rows partial;
  const float* A = nullptr;          // (E, states)
  const float* dt_weight = nullptr;  // (E, rank)
  const float* D = nullptr;          // (E), or null
  const float* bias = nullptr;       // (E), or null
  bool reverse = false;
  uint32_t before = 0;  // tokens of the first tile that there are not
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
  bool gated = false;  // z is given
  int64_t batch = 0, length = 0;
  int64_t chunk = 0;  // tokens between two saved states: a multiple of kGrid, or all there are
  int grids_a_chunk = 0;
  int tiles = 0;  // as a kernel cuts it
  // The state before every chunk, in the order of the scan: (chunks, B, groups * directions,
  // states, channels); a chunk is counted in grids, of which the first scan's last is the other's
  // first, and has the tokens that are missing.
  float* checkpoints = nullptr;

  MMVIM_HD int64_t all_channels() const { return static_cast<int64_t>(groups) * channels; }
};

// What a problem asks for.
template <class Shape>
struct Asks {
  static MMVIM_HD bool two(const Problem& p) { return Shape::kVim || p.directions == 2; }
  static MMVIM_HD bool projection(const Problem& p) { return Shape::kVim || p.rank > 0; }
  static MMVIM_HD bool softplus(const Problem& p) { return Shape::kVim || p.softplus; }
  static MMVIM_HD bool gate(const Problem& p) { return Shape::kVim || p.gated; }
  static MMVIM_HD bool fours(const Direction& scan) { return Shape::kVim || scan.whole_fours; }
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

// A tile of a scan. Slots of tokens that there are not hold zeros, which leave a state as it is.
struct Tile {
  uint32_t first;           // token
  uint32_t before, length;  // the tokens that there are: so many, from the `before`-th on

  template <class Shape>
  static MMVIM_HD Tile of(const Problem& p, const Direction& scan, int step) {
    return {static_cast<uint32_t>(step) * Shape::kTile, scan.before,
            static_cast<uint32_t>(p.length)};
  }
  MMVIM_HD bool given(int slot) const { return first - before + slot < length; }
};

// Who comes to a tile first leaves a partial result there; who comes second finishes it. With an
// odd number of tiles both come to the one in the middle at once, and the reverse scan is the
// second there.
class Turn {
 public:
  // `step`: how many tiles a direction has done before.
  template <class Shape>
  static MMVIM_HD Turn of(const Problem& p, int step) {
    return Turn(Asks<Shape>::two(p) ? 2 * step - (p.tiles - 1) : 1);
  }
  MMVIM_HD bool meet() const { return steps_past_ == 0; }
  MMVIM_HD bool second(int direction) const { return steps_past_ + direction > 0; }

 private:
  explicit MMVIM_HD Turn(int steps_past) : steps_past_(steps_past) {}
  int steps_past_;  // twice the way to the middle
};

// How many tiles there are, and how much lies between two saved states.
template <class Shape>
void cut(Problem& p) {
  p.tiles = static_cast<int>(ceil_div(p.length, int64_t{Shape::kTile}));
  const int64_t chunk = p.chunk < p.length ? p.chunk : p.length;
  p.grids_a_chunk = static_cast<int>(ceil_div(chunk, int64_t{kGrid}));
}

// Rows of four numbers each that can be read at once, without a rest.
template <class Shape>
bool has_whole_fours(const Problem& p, const Direction& scan) {
  const auto in_fours = [](const Rows& rows) {
    return rows.alignment >= static_cast<int>(4 * sizeof(typename Shape::T));
  };
  const bool states = p.states == Shape::kStates && in_fours(scan.B) && in_fours(scan.C);
  return (Shape::kStates == 1 || states) &&
         (p.rank == 0 || (p.rank % 4 == 0 && in_fours(scan.dt)));
}

// Whether it is the problem of a Vim's block: both directions, a gate, softplus, steps from a
// dt_proj, everything whole and aligned.
template <class Shape>
bool serves_vim(const Problem& p) {
  constexpr int row = Shape::kChannels * static_cast<int>(sizeof(typename Shape::T));
  constexpr int least = row < 16 ? row : 16;
  if (p.directions != 2 || !p.gated || !p.softplus || p.rank == 0) return false;
  for (const Direction& scan : p.scans) {
    if (!has_whole_fours<Shape>(p, scan)) return false;
    if (scan.u.alignment < least || scan.z.alignment < least) return false;
  }
  return true;
}

// Puts a problem in the order of its scans and chooses how their rows are read. `more(d, turn)`
// calls `turn` with the other rows of direction d.
template <class Shape, class More>
void orient(Problem& p, const More& more) {
  constexpr int kBytes = sizeof(typename Shape::T);
  cut<Shape>(p);
  const int64_t tokens = static_cast<int64_t>(p.tiles) * Shape::kTile;
  for (int d = 0; d < p.directions; ++d) {
    Direction& scan = p.scans[d];
    const auto turn = [&](auto& rows) {
      if (scan.reverse && rows.data) {  // from the last token back to the first
        rows.data += (tokens - 1) * rows.token;
        rows.token = -rows.token;
      }
      rows.tile = Shape::kTile * rows.token;
    };
    for (Rows* rows : {&scan.u, &scan.delta, &scan.dt, &scan.B, &scan.C, &scan.z, &scan.partial})
      turn(*rows);
    more(d, turn);
    for (Rows* rows : {&scan.u, &scan.delta, &scan.z})
      if (rows->data) rows->fit(Shape::kChannels * kBytes);
    scan.whole_fours = has_whole_fours<Shape>(p, scan);
    if (scan.reverse) scan.before = static_cast<uint32_t>(tokens - p.length);
  }
}

// A thread's place in a block.
template <class Shape>
struct Thread {
  int direction, lane, k, s;  // lane: within the direction; k: channel; s: which of the states

  MMVIM_HD explicit Thread(int tid)
      : direction(tid / Shape::kThreads), lane(tid % Shape::kThreads),
        k(lane % Shape::kChannels), s(lane / Shape::kChannels) {}
  // The first of the slots whose step the thread prepares, and whose y it sums up.
  MMVIM_HD int slot() const { return s * Shape::kSlots; }
  // Another way to share channels and states: lanes that differ in their lowest bit have the same
  // channel, those that differ in the next one the same states. A GPU reads what two such lanes of
  // every four want in one access.
  MMVIM_HD Thread paired() const {
    Thread other = *this;
    if (Shape::kSplit > 1) {
      other.k = lane / 2 % Shape::kChannels;
      other.s = lane / 2 / Shape::kChannels * 2 + lane % 2;
    }
    return other;
  }
};

// Where a paired thread's share lies among those of its slot. Every other row changes its halves of
// eight about, so that what eight lanes write or read at once lies in different banks.
template <class Shape>
MMVIM_HD int pair_place(int s, int k) {
  return s * Shape::kChannels + (Shape::kChannels < 8 ? k : k ^ s % 2 * 4);
}

// The place of a chunk's first state of a thread in `checkpoints`; the next is `channels` further.
template <class Shape>
MMVIM_HD int64_t checkpoint_place(const Problem& p, const Block<Shape>& block, int chunk,
                                  const Thread<Shape>& at) {
  const bool two = Asks<Shape>::two(p);
  const int64_t outer = static_cast<int64_t>(p.groups) * (two ? 2 : 1);
  const int which = two ? at.direction : block.group;
  const int64_t row = (static_cast<int64_t>(chunk) * p.batch + block.b) * outer + which;
  return (row * p.states + at.s * Shape::kOwn) * p.channels + block.first + at.k;
}

}  // namespace mmvim::cuda
