// What the backward pass of a scan leaves: gradients summed over states and channels after a sweep,
// those of the gate, of the rows that channels share, and of the parameters. scan_backward.h has
// the sweeps.
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
  int64_t tile = 0;  // from a tile to the next

  // From the last of so many tokens back to the first.
  void turn(int64_t tokens) {
    data += (tokens - 1) * token;
    token = -token;
  }
};

struct ScanGrads {
  Rows out;  // given, the same for both scans
  Rows z;    // the same for both scans; no data: not wanted
  Rows u;
  Rows delta;  // not given where rank > 0, or not wanted
  RowSums dt, B, C;
  // (B, states + rank + 2, groups * channels): those of A, dt_weight, D and bias, in this order.
  float* parameters = nullptr;
};

struct BackwardProblem : Problem {
  ScanGrads grads[2];
  const float* grad_last_state = nullptr;  // (B, groups * channels, states) of the only scan
  bool atomic = false;                     // all blocks of a group add to part 0
};

// A block's state and memory.
template <class Shape>
struct BackwardTraits {
  using T = typename Shape::T;
  using Params = BackwardProblem;
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
    float bias;               // of channel k
    float grad_D, grad_bias;  // of channel k, from the tokens this thread sums up
    RowsAhead<Shape> ahead;   // of the next tile
    const char *u, *delta, *z, *grad_out;  // where the thread begins to copy a tile
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

  // A tile's turn: while it is worked on, the next one is copied.
  struct Visit {
    int step, copy, next;  // next: the step after, or -1
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
  using Traits::kChannels;
  using Traits::kGradOut;
  using Traits::kOwn;
  using Traits::kRawTiles;
  using Traits::kShare;
  using Traits::kU;
  using Traits::kZ;

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

  MMVIM_HD BackwardSums(const Params& p, int64_t index, const Layout& layout, char* shared)
      : p(p), block(p, index), layout(layout), shared(shared) {}

  // Sums over channels and over states of what a sweep over kShare slots from `first` on left.
  MMVIM_HD void share(const Thread<Shape>& at, Registers& own, const Visit& visit,
                      int first) const {
    const Direction& scan = p.scans[at.direction];
    const Tile tile(p, scan, visit.step);
    const Space<Shape> space = this->space(at);
    share_over_channels(at, own, visit, tile, space, first);
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
      if (!tile.given(slot) || at.k >= block.count) continue;
      const float u = to_float(space.raw(visit.copy, kU, kRawTiles)[slot * kChannels + at.k]);
      const float D = scan.D ? scan.D[block.channel(p) + at.k] : 0.0f;
      const float dt = *space.step(slot, at.k);
      float* grad_y = space.floats(layout.grad_y) + slot * kChannels + at.k;
      float* slope = space.floats(layout.slope) + slot * kChannels + at.k;
      const float grad_delta = multiply_add(grad_dtu, u, grad_dt) * *slope;
      const float grad_u = multiply_add(grad_dtu, dt, *grad_y * D);
      own.grad_D = multiply_add(*grad_y, u, own.grad_D);
      own.grad_bias += grad_delta;
      *grad_y = multiply_add(D, u, y);
      *slope = grad_delta;
      const ScanGrads& grads = p.grads[at.direction];
      put(own.grad_u, grads.u, visit.step, slot, grad_u);
      if (grads.delta.data) put(start(grads.delta, at), grads.delta, visit.step, slot, grad_delta);
    }
  }

  // What is done once a tile: the gradients of z, of the rows of dt, and of dt_weight.
  MMVIM_HD void finish(const Thread<Shape>& at, const Registers& own, const Visit& visit,
                       int direction) const {
    if (at.direction != direction) return;
    const Tile tile(p, p.scans[direction], visit.step);
    const Space<Shape> space = this->space(at);
    if (p.grads[direction].z.data && at.k < block.count) finish_gate(at, visit, tile, space);
    if (p.rank > 0) finish_projection(at, own, visit, tile, space);
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

  // Where channel k of token 0 lies.
  MMVIM_HD char* start(const Rows& rows, const Thread<Shape>& at) const {
    return rows.at(block.b, 0) + (block.channel(p) + at.k) * sizeof(T);
  }
  static MMVIM_HD void put(char* start, const Rows& rows, int step, int slot, float value) {
    *reinterpret_cast<T*>(start + step * rows.tile + slot * rows.token) = from_float<T>(value);
  }
  MMVIM_HD void add(float* to, float value) const {
    if (p.atomic) {
      atomic_add(to, value);
    } else {
      *to = value;
    }
  }

  MMVIM_HD void share_over_channels(const Thread<Shape>& at, const Registers& own,
                                    const Visit& visit, const Tile& tile,
                                    const Space<Shape>& space, int first) const {
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
      if (!tile.given(slot)) continue;
      const RowSums& sums = rest % 2 == 0 ? grads.B : grads.C;
      float* to = rest % 2 == 0 ? own.grad_B : own.grad_C;
      to += visit.step * sums.tile + slot * sums.token + n;
      MMVIM_UNROLL
      for (int m = 0; m < kTogether; ++m)
        if (!Shape::kPadded || n + m < p.states) add(to + m, sum.at[m]);
    }
  }

  MMVIM_HD void finish_gate(const Thread<Shape>& at, const Visit& visit, const Tile& tile,
                            const Space<Shape>& space) const {
    const bool second = Turn(p, p.tiles - 1 - visit.step).second(at.direction);
    const float* ys = space.floats(layout.grad_y) + at.k;
    const T* z = space.raw(visit.copy, kZ, kRawTiles) + at.k;
    const T* grad_out = space.raw(visit.copy, kGradOut, kRawTiles) + at.k;
    const Rows& grads = p.grads[at.direction].z;
    char* grad_z = start(grads, at);
    const Rows& partials = p.scans[at.direction].partial;
    char* first_partial = partials.at(block.b, 0) + visit.step * partials.tile +
                          (block.channel(p) + at.k) * static_cast<int64_t>(sizeof(float));
    MMVIM_UNROLL_BY(4)
    for (int slot = at.s; slot < kTile; slot += Shape::kSplit) {
      if (!tile.given(slot)) continue;
      float* partial = reinterpret_cast<float*>(first_partial + slot * partials.token);
      float y = ys[slot * kChannels];
      if (!second) {
        *partial = y;
        continue;
      }
      if (p.directions == 2) y += *partial;
      const float grad = p.scale * to_float(grad_out[slot * kChannels]) * y;
      put(grad_z, grads, visit.step, slot, grad * silu_slope(to_float(z[slot * kChannels])));
    }
  }

  MMVIM_HD void finish_projection(const Thread<Shape>& at, const Registers& own,
                                  const Visit& visit, const Tile& tile,
                                  const Space<Shape>& space) const {
    const float* grad_delta = space.floats(layout.slope);
    const RowSums& sums = p.grads[at.direction].dt;
    MMVIM_UNROLL_BY(1)
    for (int i = at.lane; i < kTile * layout.rank_fours; i += Shape::kThreads) {
      const int slot = i % kTile, r = i / kTile;
      if (!tile.given(slot)) continue;
      float sum[4] = {};
      MMVIM_UNROLL
      for (int j = 0; j < kChannels; ++j) {  // each begins elsewhere: another bank
        const int k = (slot + j) % kChannels;  // beyond the last channel, the weight is zero
        const float grad = grad_delta[slot * kChannels + k];
        const Floats<4> w = load<4>(space.weight() + (r * kChannels + k) * 4);
        MMVIM_UNROLL
        for (int m = 0; m < 4; ++m) sum[m] = multiply_add(grad, w.at[m], sum[m]);
      }
      float* to = own.grad_dt + visit.step * sums.tile + slot * sums.token + r * 4;
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

}  // namespace mmvim::cuda
