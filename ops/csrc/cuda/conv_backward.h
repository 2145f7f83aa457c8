// The backward pass of the convolutions: see conv.h.
//
// With g the gradient before SiLU, a token of x gets g of all tokens that read it, each times a
// tap, and a tap gets the sum of g times what it met.
//
// A thread slides a window over its run. The window ends at a token of the causal convolution and
// begins at one of the anti-causal, so both read the same x; and its first token's gradient is
// complete when g of both is known. x and the gradients of the results are read a group of tokens
// ahead, in each of which the window comes around once: every token has a fixed place in it.

#pragma once

#include "conv.h"

namespace mmvim::cuda {

template <class Shape>
struct ConvBackward {
  using Params = ConvProblem;
  static constexpr int kRuns = 4, kMostThreads = Shape::kLanes * kRuns;
  static constexpr int kWidth = Shape::kWidth, kHalo = Shape::kHalo;
  static constexpr int kColumns = kWidth + 1;  // of a direction
  using Thread = ConvThread<Shape>;
  using Own = typename Thread::Own;
  using F = typename Shape::F;

  struct Group {
    Own x[kWidth], grads[2][kWidth];
  };
  struct Registers {
    Own before[kHalo];  // x
    Group next;
  };

  static MMVIM_HD int64_t blocks(const Params& p) {
    return ConvBlock::number(p, Shape::kChannels, p.part_tokens);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params&) {
    return 4 * (Shape::kTaps + 2 * kColumns * kRuns * Shape::kChannels);
  }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const ConvBlock block(p, index, Shape::kChannels, p.part_tokens);
    float* taps = reinterpret_cast<float*>(shared);
    const Pass pass = {p, p.part_tokens / kRuns, taps, taps + Shape::kTaps};
    each([&](int tid, Registers& own) {
      const Thread at(p, block, tid, pass.tokens);
      at.read(p.x, -kHalo, own.before);
      pass.read(at, 0, own.next);
      share_taps<Shape, kMostThreads>(p, block.channel, tid, taps);
    });
    each([&](int tid, Registers& own) { pass.slide(Thread(p, block, tid, pass.tokens), own); });
    if (!p.parts) return;
    each([&](int tid, Registers&) {
      for (int i = tid; i < p.columns() * Shape::kChannels; i += kMostThreads) {
        const int column = i / Shape::kChannels, c = i % Shape::kChannels;
        if (block.channel + c >= p.channels) continue;
        float sum = 0.0f;
        MMVIM_UNROLL
        for (int run = 0; run < kRuns; ++run)
          sum += pass.sums[(column * kRuns + run) * Shape::kChannels + c];
        p.parts[(block.part * p.columns() + column) * p.channels + block.channel + c] = sum;
      }
    });
  }

 private:
  // The token of g in a direction, counted from the last of the window.
  static constexpr MMVIM_HD int shift(int direction) { return direction == kCausal ? 0 : -kHalo; }
  // Where in a window that ends at `place` tap k finds its x. Those who find the x of the window's
  // other end by tap k lie where the other direction's tap k looks.
  static constexpr MMVIM_HD int met(int direction, int place, int k) {
    return (direction == kCausal ? place + 1 + k : place + kWidth - k) % kWidth;
  }
  static MMVIM_HD bool is_in(int i, int count) {
    return static_cast<unsigned>(i) < static_cast<unsigned>(count);
  }

  struct State {
    ConvTaps<Shape> taps[2];
    F x[kWidth], g[2][kWidth], sums[2][kColumns];
  };

  struct Pass {
    const Params& p;
    int tokens;   // of a run
    float* taps;  // both in shared memory
    float* sums;  // (columns, kRuns, kChannels)

    MMVIM_HD void read(const Thread& at, int first, Group& to) const {
      at.read(p.x, first, to.x);
      MMVIM_UNROLL
      for (int d = 0; d < 2; ++d)
        if (p.convs[d].weight) at.read(p.convs[d].grad_out, first + shift(d), to.grads[d]);
    }

    MMVIM_HD void slide(const Thread& at, Registers& own) const {
      State state = {};
      MMVIM_UNROLL
      for (int d = 0; d < 2; ++d)
        if (p.convs[d].weight) state.taps[d] = ConvTaps<Shape>(taps, d, at.lane);
      MMVIM_UNROLL
      for (int i = 0; i < kHalo; ++i) state.x[i + 1] = to_floats(own.before[i]);
      // The last window begins at the last token of the run, or ends where no token follows.
      const int rest = at.length - at.token, own_tokens = rest < tokens ? rest : tokens;
      const int last = own_tokens > 0 ? own_tokens + kHalo : 0;
      MMVIM_UNROLL_BY(1)
      for (int first = 0; first < last; first += kWidth) {
        const Group group = own.next;
        if (first + kWidth < last) read(at, first + kWidth, own.next);
        char* to = at.at(p.grad_x, first - kHalo);
        MMVIM_UNROLL
        for (int place = 0; place < kWidth; ++place) {
          const F grad_x = window(first, place, group, state);
          const int token = first + place - kHalo;
          if (p.grad_x.data && is_in(token, own_tokens))
            Thread::own_at(to) = to_numbers<typename Shape::T>(grad_x);
          to += p.grad_x.token;
        }
      }
      if (!p.parts) return;
      MMVIM_UNROLL
      for (int d = 0; d < 2; ++d) {
        if (!p.convs[d].weight) continue;
        MMVIM_UNROLL
        for (int k = 0; k < kColumns; ++k) {
          const int row = (p.column(d) + k) * kRuns + at.run;
          store(sums + row * Shape::kChannels + at.lane, state.sums[d][k]);
        }
      }
    }

    // The window that ends at token `first` + `place` of the run; the gradient of its first.
    MMVIM_HD F window(int first, int place, const Group& group, State& state) const {
      state.x[place] = to_floats(group.x[place]);
      F grad_x = {};
      MMVIM_UNROLL
      for (int d = 0; d < 2; ++d) {
        if (!p.convs[d].weight) continue;
        const ConvTaps<Shape>& taps = state.taps[d];
        F y = taps.bias;
        MMVIM_UNROLL
        for (int k = 0; k < kWidth; ++k) add_product(taps.weight[k], state.x[met(d, place, k)], y);
        F g = to_floats(group.grads[d][place]), own = {};
        const int token = first + place + shift(d);
        MMVIM_UNROLL
        for (int j = 0; j < Shape::kEach; ++j) {
          g.at[j] *= silu_slope(y.at[j]);
          if (is_in(token, tokens)) own.at[j] = g.at[j];
          state.sums[d][kWidth].at[j] += own.at[j];
        }
        state.g[d][place] = g;
        MMVIM_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          add_product(own, state.x[met(d, place, k)], state.sums[d][k]);
          add_product(taps.weight[k], state.g[d][met(1 - d, place, k)], grad_x);
        }
      }
      return grad_x;
    }
  };
};

}  // namespace mmvim::cuda
