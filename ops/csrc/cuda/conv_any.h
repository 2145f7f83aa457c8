// The convolutions of conv.h for a width that is known when they run: x is read once a tap, mostly
// from the caches.

#pragma once

#include "conv.h"

namespace mmvim::cuda {

// What both passes share: a block of threads, each row of which has adjacent channels.
template <class T>
struct ConvAny {
  static constexpr int kLanes = 32, kRows = 8, kMostThreads = kLanes * kRows;

  const ConvProblem& p;
  const ConvBlock block;
  const int tokens;  // of the block

  MMVIM_HD ConvAny(const ConvProblem& p, int64_t index, int most_tokens)
      : p(p), block(p, index, kLanes, most_tokens),
        tokens(static_cast<int>(p.length - block.token < most_tokens ? p.length - block.token
                                                                     : most_tokens)) {}
  static MMVIM_HD int lane(int tid) { return tid % kLanes; }
  static MMVIM_HD int row(int tid) { return tid / kLanes; }
  MMVIM_HD int64_t channel(int tid) const { return block.channel + lane(tid); }

  // At a token, counted from the first of the block.
  MMVIM_HD T* at(const Rows& rows, int token, int64_t channel) const {
    return reinterpret_cast<T*>(rows.at(block.b, block.token + token)) + channel;
  }
  MMVIM_HD bool inside(int token) const {
    return block.token + token >= 0 && block.token + token < p.length;
  }
  // The token that tap k meets.
  MMVIM_HD int met(int direction, int token, int k) const {
    return direction == kCausal ? token - (p.width - 1 - k) : token + (p.width - 1 - k);
  }
  MMVIM_HD float x(int token, int64_t channel) const {
    return inside(token) ? to_float(*at(p.x, token, channel)) : 0.0f;
  }
  // Before SiLU.
  MMVIM_HD float convolve(int direction, int token, int64_t channel) const {
    const Conv& conv = p.convs[direction];
    float y = conv.bias ? conv.bias[channel] : 0.0f;
    for (int k = 0; k < p.width; ++k) {
      const float weight = conv.weight[channel * p.width + k];
      y = multiply_add(weight, x(met(direction, token, k), channel), y);
    }
    return y;
  }
};

template <class T>
struct ConvAnyForward {
  using Params = ConvProblem;
  using Any = ConvAny<T>;
  struct Registers {};
  static constexpr int kTokens = 64, kMostThreads = Any::kMostThreads;

  static MMVIM_HD int64_t blocks(const Params& p) {
    return ConvBlock::number(p, Any::kLanes, kTokens);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params&) { return 0; }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char*) {
    const Any any(p, index, kTokens);
    each([&](int tid, Registers&) {
      const int64_t channel = any.channel(tid);
      if (channel >= p.channels) return;
      for (int direction = 0; direction < 2; ++direction) {
        if (!p.convs[direction].weight) continue;
        for (int token = Any::row(tid); token < any.tokens; token += Any::kRows) {
          const float y = silu(any.convolve(direction, token, channel));
          *any.at(p.convs[direction].out, token, channel) = from_float<T>(y);
        }
      }
    });
  }
};

// A block keeps the gradients before SiLU of its tokens, and of those that read its tokens, in
// shared memory: the latter are behind its tokens or, in the anti-causal direction, before them.
template <class T>
struct ConvAnyBackward {
  using Params = ConvProblem;
  using Any = ConvAny<T>;
  struct Registers {};
  static constexpr int kMostThreads = Any::kMostThreads;

  static MMVIM_HD int64_t blocks(const Params& p) {
    return ConvBlock::number(p, Any::kLanes, p.part_tokens);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return 8 * Any::kLanes * rows(p); }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const Pass pass(p, index, reinterpret_cast<float*>(shared));
    each([&](int tid, Registers&) { pass.before_silu(tid); });
    each([&](int tid, Registers&) {
      if (pass.channel(tid) >= p.channels) return;
      if (p.grad_x.data) pass.input(tid);
      if (p.parts) pass.parameters(tid);
    });
  }

 private:
  static MMVIM_HD int rows(const Params& p) { return p.part_tokens + p.width - 1; }

  struct Pass : Any {
    using Any::p;
    float* grads;  // (2, rows, kLanes)

    MMVIM_HD Pass(const Params& p, int64_t index, float* shared)
        : Any(p, index, p.part_tokens), grads(shared) {}

    // The token of a direction's first row.
    MMVIM_HD int first(int direction) const { return direction == kCausal ? 0 : 1 - p.width; }
    MMVIM_HD float& grad(int direction, int token, int tid) const {
      const int row = direction * rows(p) + token - first(direction);
      return grads[row * Any::kLanes + Any::lane(tid)];
    }

    MMVIM_HD void before_silu(int tid) const {
      const int64_t channel = this->channel(tid);
      for (int direction = 0; direction < 2; ++direction) {
        const Conv& conv = p.convs[direction];
        if (!conv.weight) continue;
        for (int i = Any::row(tid); i < rows(p); i += Any::kRows) {
          const int token = first(direction) + i;
          float g = 0.0f;
          if (channel < p.channels && this->inside(token)) {
            g = to_float(*this->at(conv.grad_out, token, channel)) *
                silu_slope(this->convolve(direction, token, channel));
          }
          grad(direction, token, tid) = g;
        }
      }
    }

    MMVIM_HD void input(int tid) const {
      const int64_t channel = this->channel(tid);
      for (int token = Any::row(tid); token < this->tokens; token += Any::kRows) {
        float sum = 0.0f;
        for (int direction = 0; direction < 2; ++direction) {
          const float* weight = p.convs[direction].weight;
          if (!weight) continue;
          for (int k = 0; k < p.width; ++k) {
            // Who meets a token by a tap is as far on its other side.
            const float g = grad(direction, this->met(1 - direction, token, k), tid);
            sum = multiply_add(g, weight[channel * p.width + k], sum);
          }
        }
        *this->at(p.grad_x, token, channel) = from_float<T>(sum);
      }
    }

    // The columns are shared out among the rows of threads.
    MMVIM_HD void parameters(int tid) const {
      const int64_t channel = this->channel(tid);
      for (int column = Any::row(tid); column < p.columns(); column += Any::kRows) {
        const bool second = column > p.width;
        const int direction = second || !p.convs[kCausal].weight ? kAntiCausal : kCausal;
        const int k = second ? column - p.width - 1 : column;
        float sum = 0.0f;
        for (int token = 0; token < this->tokens; ++token) {
          const float x = k == p.width ? 1.0f : this->x(this->met(direction, token, k), channel);
          sum = multiply_add(grad(direction, token, tid), x, sum);
        }
        p.parts[(this->block.part * p.columns() + column) * p.channels + channel] = sum;
      }
    }
  };
};

}  // namespace mmvim::cuda
