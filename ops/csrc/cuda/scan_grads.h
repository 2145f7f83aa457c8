// What the backward pass of a scan leaves: gradients summed over states and channels after a sweep,
// those of the gate, of the rows that channels share, and of the parameters. scan_backward.h has
// the sweeps.
//
// The gradients of the rows that channels share (dt, B, C) are summed over a block's channels and
// then added to those of other blocks: atomically, or by a later sum over a part for each block.

#pragma once

#include "backward_problem.h"
#include "scan_tile.h"

namespace mmvim::cuda {

// A block's state and memory.
template <class Shape>
struct BackwardTraits {
  using T = typename Shape::T;
  using Params = BackwardProblem;
  static constexpr int kOwn = Shape::kOwn;
  static constexpr int kChannels = Shape::kChannels;
  static constexpr int kSweep = 8;                  // tokens that are rebuilt in registers
  static constexpr int kSweeps = Shape::kTile / kSweep;
  static constexpr int kShare = kOwn > 1 ? 4 : 8;   // tokens between two sums over a block
  static constexpr int kVector = 2 * kOwn < 4 ? 2 * kOwn : 4;  // of the grads of B and C
  static constexpr int kVectors = 2 * kOwn / kVector;          // of them, a thread and token
  static constexpr bool kNarrow = sizeof(T) < sizeof(float);
  static constexpr bool kWideGrad = kNarrow && !Shape::kVim;  // grad_out may be wider

  struct Registers {
    float A[kOwn];                               // times log2(e), of the paired thread's states
    float before[kOwn];                          // the state before the sweep's tokens
    float h[kSweep][kOwn], decay[kSweep][kOwn];  // of the sweep's tokens
    // The gradient of the state after a token, to be multiplied by the decay of the next token
    // where it is added to, in one rounding: a product with a decay within 1e-7 of one would be
    // rounded the same way at every token.
    float grad[kOwn], later[kOwn];
    float grad_A[kOwn];
    RowsAhead<Shape> ahead;  // of the next tile
  };
  // Where a thread is in global memory. Registers are few: it keeps these in shared memory.
  enum class Cursor {
    kCopyU, kCopyDelta, kCopyZ, kCopyGradOut,  // where it begins to copy a tile
    // In the tile that is swept over: its first slot, and where the grads of slot 0 go, of the
    // channel whose tokens it sums up and of the rows that channels share.
    kGradZ, kPartial,
    kGradU, kGradDelta, kGradDt, kGradB, kGradC,
  };
  static constexpr int kCursors = 11;

  struct Layout : TileLayout {
    int grad_y;       // (8, kChannels, 4 slots); a token's y takes its place
    int slope;        // (8, kChannels, 4 slots); a token's gradient of delta takes its place
    int shares;       // (kShare, kVectors, kThreads, kVector): grads of B and C
    int sums;         // (kShare / 2, kPair), of which (3, kThreads, 2 tokens): grads of dt, dt u; y
    int cursors;      // (kCursors, kThreads) of char*
    int channels;     // (2, kChannels): bias, D
    int totals;       // (2, kThreads): grads of bias and D, of the tokens a thread sums up
    int states;       // (tiles a chunk * kSweeps, kOwn, kThreads): before each sweep
    int grad_weight;  // (rank_fours, kChannels, 4)
    int grad_out;     // of the raw tiles: two, of half the channels each, where it is wide

    MMVIM_HD explicit Layout(const Params& p) {
      take_fixed<Shape>();
      grad_y = take(4 * Shape::kTile * kChannels);
      slope = take(4 * Shape::kTile * kChannels);
      shares = take(4 * kShare * 2 * Shape::kThreads * kOwn);
      sums = take(4 * kShare / 2 * kPair);
      cursors = take(static_cast<int>(sizeof(char*)) * kCursors * Shape::kThreads);
      channels = take(4 * 2 * kChannels);
      totals = take(4 * 2 * Shape::kThreads);
      grad_out = !Asks<Shape>::projection(p) || Asks<Shape>::gate(p) ? kGradOut : kZ;
      const int wide = kWideGrad && p.wide_grad ? 2 : 1;
      take_rest<Shape>(p, !Asks<Shape>::projection(p) ? kDelta + 1 : grad_out + wide);
      const int tiles = p.grids_a_chunk < p.tiles ? p.grids_a_chunk : p.tiles;
      states = take(4 * tiles * kSweeps * kOwn * Shape::kThreads);
      grad_weight = take(16 * rank_fours * kChannels);
    }
  };
  enum RawTile { kU, kZ, kGradOut, kDelta };
  // Floats from the sums of two tokens to the next two's, which lie in other banks.
  static constexpr int kPair = 3 * Shape::kThreads * 2 + 16;
  // The place of a slot in grad_y and slope.
  static MMVIM_HD int place(int slot, int k) { return (slot / 4 * kChannels + k) * 4 + slot % 4; }

  // A tile's turn: while it is worked on, the next one is copied.
  struct Visit {
    int step, copy, next;  // next: the step after, or -1
    bool next_sweeps;      // it is swept over: its states alone need neither C, z nor grad_out
  };
};

// The phases that sum up.
template <class Shape>
struct BackwardSums : BackwardTraits<Shape> {
  using Traits = BackwardTraits<Shape>;
  using typename Traits::T;
  using typename Traits::Params;
  using typename Traits::Registers;
  using typename Traits::Layout;
  using typename Traits::Visit;
  using typename Traits::Cursor;
  using Traits::kChannels;
  using Traits::kNarrow;
  using Traits::kWideGrad;
  using Traits::kOwn;
  using Traits::kPair;
  using Traits::kShare;
  using Traits::kU;
  using Traits::kVector;
  using Traits::kVectors;
  using Traits::kZ;
  using Traits::place;

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

  // Between launches: the gradient of a state, or its factor.
  MMVIM_HD float* carried(const Thread<Shape>& at, int which, int i) const {
    return p.carried + checkpoint_place<Shape>(p, block, which, at) +
           static_cast<int64_t>(i) * p.channels;
  }

  MMVIM_HD BackwardSums(const Params& p, int64_t index, const Layout& layout, char* shared)
      : p(p), block(p, index), layout(layout), shared(shared) {}

  MMVIM_HD char*& cursor(const Thread<Shape>& at, Cursor which) const {
    char* base = space(at).base + layout.cursors;
    return reinterpret_cast<char**>(base)[static_cast<int>(which) * Shape::kThreads + at.lane];
  }

  MMVIM_HD float* rows(const Thread<Shape>& at, Cursor which) const {
    return reinterpret_cast<float*>(in_global(cursor(at, which)));
  }

  // A token of a share, and a channel: what one thread sums up over the states. Where half of the
  // threads do, it is the half that has less to sum up over channels.
  static constexpr int kItems = ceil_div(kShare * kChannels, Shape::kThreads);  // of a thread
  struct Item {
    int token, k;

    MMVIM_HD explicit Item(int lane, int item = 0) {
      if (kItems > 1) {  // all tokens of a channel
        static_assert(kItems == 1 || kChannels == Shape::kThreads);
        token = item;
        k = lane;
        return;
      }
      const int i = (lane + Shape::kThreads / 2) % Shape::kThreads;
      token = i / 2 / kChannels * 2 + i % 2;
      k = i / 2 % kChannels;
    }
  };

  // Where the thread's grads of the last tile go, which is swept over first.
  MMVIM_HD void begin_sums(const Thread<Shape>& at) const {
    const ScanGrads& grads = p.grads[at.direction];
    const int last = p.end_tile() - 1;
    const int64_t channel = block.channel(p) + Item(at.lane).k;
    float* totals = space(at).floats(layout.totals) + at.lane;
    totals[0] = totals[Shape::kThreads] = 0.0f;
    const auto start = [&](const Rows& rows, int slot, int64_t offset) {
      return rows.at(block.b, slot) + last * rows.tile + offset;
    };
    constexpr int64_t bytes = sizeof(T);
    cursor(at, Cursor::kGradU) = start(grads.u, 0, channel * bytes);
    if (!Shape::kVim && grads.delta.data)
      cursor(at, Cursor::kGradDelta) = start(grads.delta, 0, channel * bytes);
    if (Shape::kVim || grads.z.data) {
      const int64_t own_channel = block.channel(p) + at.k;
      cursor(at, Cursor::kGradZ) = start(grads.z, at.slot(), own_channel * bytes);
      cursor(at, Cursor::kPartial) =
          start(p.scans[at.direction].partial, at.slot(), own_channel * sizeof(float));
    }
    const auto sums = [&](const RowSums& sums) {
      const int64_t part = p.atomic ? 0 : block.first / kChannels;
      return reinterpret_cast<char*>(sums.data + part * sums.part + block.b * sums.sequence +
                                     block.group * sums.group + last * sums.tile);
    };
    if (Asks<Shape>::projection(p)) cursor(at, Cursor::kGradDt) = sums(grads.dt);
    cursor(at, Cursor::kGradB) = sums(grads.B);
    cursor(at, Cursor::kGradC) = sums(grads.C);
  }
  MMVIM_HD void move_back(const Thread<Shape>& at) const {
    const ScanGrads& grads = p.grads[at.direction];
    constexpr int64_t bytes = sizeof(float);
    cursor(at, Cursor::kGradU) -= grads.u.tile;
    if (!Shape::kVim && grads.delta.data) cursor(at, Cursor::kGradDelta) -= grads.delta.tile;
    if (Shape::kVim || grads.z.data) {
      cursor(at, Cursor::kGradZ) -= grads.z.tile;
      cursor(at, Cursor::kPartial) -= p.scans[at.direction].partial.tile;
    }
    if (Asks<Shape>::projection(p)) cursor(at, Cursor::kGradDt) -= grads.dt.tile * bytes;
    cursor(at, Cursor::kGradB) -= grads.B.tile * bytes;
    cursor(at, Cursor::kGradC) -= grads.C.tile * bytes;
  }

  // Sums over channels and over states of what a sweep over kShare slots from `first` on left.
  MMVIM_HD void share(const Thread<Shape>& at, const Visit& visit, int first) const {
    const Tile tile = Tile::of<Shape>(p, p.scans[at.direction], visit.step);
    const Space<Shape> space = this->space(at);
    share_over_channels(at, tile, space, first);
    MMVIM_UNROLL_BY(1)
    for (int i = 0; i < kItems; ++i) share_item(at, visit, Item(at.lane, i), first, tile, space);
  }
  MMVIM_HD void share_item(const Thread<Shape>& at, const Visit& visit, const Item& item, int first,
                           const Tile& tile, const Space<Shape>& space) const {
    const int slot = first + item.token;
    if (item.token >= kShare || item.k >= block.count || !tile.given(slot)) return;
    const float* sums = space.floats(layout.sums) + item.token / 2 * kPair + item.token % 2;
    float grad_dt = 0.0f, grad_dtu = 0.0f, y = 0.0f;
    MMVIM_UNROLL
    for (int s = 0; s < Shape::kSplit; ++s) {
      const float* from = sums + pair_place<Shape>(s, item.k) * 2;
      grad_dt += from[0];
      grad_dtu += from[Shape::kThreads * 2];
      y += from[2 * Shape::kThreads * 2];
    }
    const float u = to_float(space.raw(visit.copy, kU)[slot * kChannels + item.k]);
    const float dt = *space.step(slot, item.k);
    const float D = space.floats(layout.channels)[kChannels + item.k];
    float* grad_y = space.floats(layout.grad_y) + place(slot, item.k);
    float* slope = space.floats(layout.slope) + place(slot, item.k);
    const float grad_delta = multiply_add(grad_dtu, u, grad_dt) * *slope;
    const float grad_u = multiply_add(grad_dtu, dt, *grad_y * D);
    float* totals = space.floats(layout.totals) + at.lane;
    totals[0] += grad_delta;
    totals[Shape::kThreads] = multiply_add(*grad_y, u, totals[Shape::kThreads]);
    *grad_y = multiply_add(D, u, y);
    *slope = grad_delta;
    const ScanGrads& grads = p.grads[at.direction];
    put(in_global(cursor(at, Cursor::kGradU)) + slot * grads.u.token, grad_u);
    if (!Shape::kVim && grads.delta.data)
      put(in_global(cursor(at, Cursor::kGradDelta)) + slot * grads.delta.token, grad_delta);
  }

  // What is done once a tile: the gradients of z, of the rows of dt, and of dt_weight.
  MMVIM_HD void finish(const Thread<Shape>& at, const Visit& visit) const {
    const Tile tile = Tile::of<Shape>(p, p.scans[at.direction], visit.step);
    const Space<Shape> space = this->space(at);
    if ((Shape::kVim || p.grads[at.direction].z.data) && at.k < block.count)
      finish_gate(at, visit, tile, space);
    if (Asks<Shape>::projection(p)) finish_projection(at, tile, space);
    move_back(at);
    if (visit.next >= 0) wait_for_copies();
  }

  MMVIM_HD void end(const Thread<Shape>& at, const Registers& own) const {
    const Space<Shape> space = this->space(at);
    const int64_t rows = p.states + p.rank + 2, ld = p.all_channels();
    float* out = p.grads[at.direction].parameters + block.b * rows * ld + block.channel(p);
    const Thread<Shape> pair = at.paired();
    MMVIM_UNROLL
    for (int i = 0; i < kOwn; ++i)
      if (given(pair, i)) out[(pair.s * kOwn + i) * ld + pair.k] = own.grad_A[i];
    if (p.first_chunk > 0) {
      MMVIM_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        if (!given(pair, i)) continue;
        *carried(pair, 0, i) = own.grad[i];
        *carried(pair, 1, i) = own.later[i];
      }
    }
    if (at.k >= block.count) return;
    out += at.k;
    for (int r = at.s; r < p.rank; r += Shape::kSplit)
      out[(p.states + r) * ld] =
          space.floats(layout.grad_weight)[(r / 4 * kChannels + at.k) * 4 + r % 4];
    if (at.s != 0) return;
    const float* totals = space.floats(layout.totals);
    float grad_D = 0.0f, grad_bias = 0.0f;
    for (int lane = 0; lane < Shape::kThreads; ++lane) {
      if (Item(lane).k != at.k) continue;
      grad_bias += totals[lane];
      grad_D += totals[Shape::kThreads + lane];
    }
    out[(p.states + p.rank) * ld] = grad_D;
    out[(p.states + p.rank + 1) * ld] = grad_bias;
  }

  // A number of the tile of grad_out.
  MMVIM_HD float grad_out(const Space<Shape>& space, int copy, int place) const {
    const T* tile = space.raw(copy, layout.grad_out);
    return kWideGrad && p.wide_grad ? reinterpret_cast<const float*>(tile)[place]
                                  : to_float(tile[place]);
  }

  static MMVIM_HD void put(char* to, float value) {
    *reinterpret_cast<T*>(to) = from_float<T>(value);
  }
  template <int Count>
  MMVIM_HD void add(float* to, const Floats<Count>& values) const {
    if (p.atomic) {
      atomic_add(to, values);
    } else {
      store(to, values);
    }
  }
  MMVIM_HD void add(float* to, float value) const { add<1>(to, {{value}}); }

  MMVIM_HD void share_over_channels(const Thread<Shape>& at, const Tile& tile,
                                    const Space<Shape>& space, int first) const {
    constexpr int kParts = kVectors * Shape::kSplit;  // of a token
    // Lanes whose sums begin in different banks; the next ones begin with another channel.
    constexpr int kApart = kChannels * kVector < 32 ? 32 / (kChannels * kVector) : 1;
    const ScanGrads& grads = p.grads[at.direction];
    MMVIM_UNROLL_BY(1)
    for (int task = at.lane; task < kShare * kParts; task += Shape::kThreads) {
      const int slot = first + task / kParts, vector = task % kParts / Shape::kSplit;
      const int n = task % Shape::kSplit * kOwn;
      const float* shares = space.floats(layout.shares) +
                            (task / Shape::kSplit * Shape::kThreads +
                             task % Shape::kSplit * kChannels) * kVector;
      Floats<kVector> sum = {};
      MMVIM_UNROLL_BY(8)
      for (int j = 0; j < kChannels; ++j) {
        const int k = j ^ at.lane / kApart % kChannels;
        const auto share = load<kVector>(shares + k * kVector);
        MMVIM_UNROLL
        for (int m = 0; m < kVector; ++m) sum.at[m] += share.at[m];
      }
      if (!tile.given(slot)) continue;
      float* grad_B = rows(at, Cursor::kGradB) + slot * grads.B.token + n;
      float* grad_C = rows(at, Cursor::kGradC) + slot * grads.C.token + n;
      const auto place = [&](int i) { return i < kOwn ? grad_B + i : grad_C + i - kOwn; };
      const int i = vector * kVector;  // of the thread's B and C
      constexpr int kAtOnce = Shape::kPadded ? 1 : kOwn < kVector ? kOwn : kVector;
      if (kAtOnce > 1 && (Shape::kVim || p.whole_sums)) {
        MMVIM_UNROLL
        for (int m = 0; m < kVector; m += kAtOnce) {
          Floats<kAtOnce> some;
          MMVIM_UNROLL
          for (int j = 0; j < kAtOnce; ++j) some.at[j] = sum.at[m + j];
          add(place(i + m), some);
        }
      } else {
        MMVIM_UNROLL
        for (int m = 0; m < kVector; ++m)
          if (!Shape::kPadded || n + (i + m) % kOwn < p.states) add(place(i + m), sum.at[m]);
      }
    }
  }

  MMVIM_HD void finish_gate(const Thread<Shape>& at, const Visit& visit, const Tile& tile,
                            const Space<Shape>& space) const {
    const bool second = Turn::of<Shape>(p, p.tiles - 1 - visit.step).second(at.direction);
    const int first = at.slot() * kChannels + at.k;
    const float* ys = space.floats(layout.grad_y);
    const T* z = space.raw(visit.copy, kZ) + first;
    const int64_t token = p.grads[at.direction].z.token;
    const int64_t partial_token = p.scans[at.direction].partial.token;
    char* grad_z = in_global(cursor(at, Cursor::kGradZ));
    char* partials = in_global(cursor(at, Cursor::kPartial));
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kSlots; ++j, grad_z += token, partials += partial_token) {
      if (!tile.given(at.slot() + j)) continue;
      float* partial = reinterpret_cast<float*>(partials);
      float y = ys[place(at.slot() + j, at.k)];
      if (!second) {
        *partial = y;
        continue;
      }
      if (Asks<Shape>::two(p)) y += *partial;
      const float grad = p.scale * grad_out(space, visit.copy, first + j * kChannels) * y;
      put(grad_z, grad * silu_slope(to_float(z[j * kChannels])));
    }
  }

  MMVIM_HD void finish_projection(const Thread<Shape>& at, const Tile& tile,
                                  const Space<Shape>& space) const {
    float* grad_rows = rows(at, Cursor::kGradDt);
    const float* grad_delta = space.floats(layout.slope);
    const int64_t token = p.grads[at.direction].dt.token;
    MMVIM_UNROLL_BY(1)
    for (int i = at.lane; i < Shape::kTile * layout.rank_fours; i += Shape::kThreads) {
      const int slot = i % Shape::kTile, r = i / Shape::kTile;
      if (!tile.given(slot)) continue;
      Floats<4> sum = {};
      MMVIM_UNROLL
      for (int j = 0; j < kChannels; ++j) {  // each four begins elsewhere: another bank
        const int k = j ^ slot / 4 % kChannels;  // beyond the last channel, the weight is zero
        const float grad = grad_delta[place(slot, k)];
        const Floats<4> w = load<4>(space.weight() + (r * kChannels + k) * 4);
        MMVIM_UNROLL
        for (int m = 0; m < 4; ++m) sum.at[m] = multiply_add(grad, w.at[m], sum.at[m]);
      }
      float* to = grad_rows + slot * token + r * 4;
      if (Shape::kVim || p.whole_sums) {
        add(to, sum);
      } else {
        MMVIM_UNROLL
        for (int m = 0; m < 4; ++m)
          if (r * 4 + m < p.rank) add(to + m, sum.at[m]);
      }
    }
    MMVIM_UNROLL_BY(1)
    for (int i = at.lane; i < kChannels * layout.rank_fours; i += Shape::kThreads) {
      const int k = i % kChannels, r = i / kChannels;
      float* total = space.floats(layout.grad_weight) + i * 4;
      Floats<4> sum = load<4>(total);
      MMVIM_UNROLL_BY(2)
      for (int slot = 0; slot < Shape::kTile; slot += 4) {  // beyond the last token, dt is zero
        const Floats<4> grad = load<4>(grad_delta + place(slot, k));
        MMVIM_UNROLL
        for (int j = 0; j < 4; ++j) {
          const Floats<4> dt = load<4>(space.dt() + (r * Shape::kTile + slot + j) * 4);
          MMVIM_UNROLL
          for (int m = 0; m < 4; ++m) sum.at[m] = multiply_add(grad.at[j], dt.at[m], sum.at[m]);
        }
      }
      if (k < block.count) store(total, sum);
    }
  }
};

}  // namespace mmvim::cuda
