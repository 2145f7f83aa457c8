// Root-mean-square normalisation of a sum, forward and backward.
//
// Tensors differ in their types here: a residual stream in float32 and what is added to it in
// bfloat16. So a type is looked up when a thread reads four numbers, which costs less than the
// memory takes, and less than a kernel for each of their combinations.
//
// A row of threads takes one token, and a block a few tokens at a time.

#pragma once

#include "numbers.h"
#include "scan.h"

namespace mmvim::cuda {

// As many as a block's shared memory has room for on the smallest of GPUs, 99 KiB.
constexpr int kMostNormChannels = 24576;

enum class NumberType : int { kFloat, kBFloat16, kHalf };

// A tensor (B, L, C) of some type.
struct TypedRows {
  Rows rows;  // no data: not given
  NumberType type = NumberType::kFloat;
  bool whole = false;  // whether four numbers may be read at once wherever a thread begins

  // Of one token.
  MMVIM_HD TypedRows at(int64_t b, int64_t token) const {
    TypedRows row = *this;
    if (rows.data) row.rows.data = rows.at(b, token);
    return row;
  }

  // Up to four numbers from `first` on; zeros beyond `count`.
  MMVIM_HD Floats<4> read(int first, int count) const {
    switch (type) {
      case NumberType::kFloat: return read_as<float>(first, count);
      case NumberType::kBFloat16: return read_as<BFloat16>(first, count);
      default: return read_as<Half>(first, count);
    }
  }
  // Returns them as they were rounded.
  MMVIM_HD Floats<4> write(int first, int count, const Floats<4>& floats) const {
    switch (type) {
      case NumberType::kFloat: return write_as<float>(first, count, floats);
      case NumberType::kBFloat16: return write_as<BFloat16>(first, count, floats);
      default: return write_as<Half>(first, count, floats);
    }
  }

 private:
  template <class T>
  MMVIM_HD Floats<4> read_as(int first, int count) const {
    T* from = reinterpret_cast<T*>(rows.data) + first;
    Numbers<T, 4> four = {};
    if (whole) {
      four = numbers_at<T, 4>(reinterpret_cast<char*>(from));
    } else {
      MMVIM_UNROLL
      for (int i = 0; i < 4; ++i)
        if (first + i < count) four.at[i] = from[i];
    }
    return to_floats(four);
  }
  template <class T>
  MMVIM_HD Floats<4> write_as(int first, int count, const Floats<4>& floats) const {
    T* to = reinterpret_cast<T*>(rows.data) + first;
    const Numbers<T, 4> four = to_numbers<T>(floats);
    if (whole) {
      numbers_at<T, 4>(reinterpret_cast<char*>(to)) = four;
    } else {
      MMVIM_UNROLL
      for (int i = 0; i < 4; ++i)
        if (first + i < count) to[i] = four.at[i];
    }
    return to_floats(four);
  }
};

struct NormProblem {
  int64_t batch = 0, length = 0;
  int channels = 0;
  TypedRows total, weight;  // weight: one row
  float* scales = nullptr;  // (B, L)
  // Of the forward pass.
  TypedRows x, added, normed;
  float eps = 0.0f;
  // Of the backward pass. Every so many tokens leave their sum for the gradient of the weight:
  // (parts, 1, C).
  TypedRows grad_normed, grad_total, grad_x;  // grad_total: may be left out
  int part_tokens = 0;
  float* parts = nullptr;

  MMVIM_HD int64_t parts_of_sequence(int tokens) const { return ceil_div<int64_t>(length, tokens); }
};

// Lanes: threads of a token.
template <int Lanes>
struct NormThreads {
  static constexpr int kThreads = 256, kTokens = kThreads / Lanes;
  static MMVIM_HD int lane(int tid) { return tid % Lanes; }
  static MMVIM_HD int slot(int tid) { return tid / Lanes; }  // which token

  // Channels padded to fours.
  static MMVIM_HD int padded(const NormProblem& p) { return ceil_div(p.channels, 4) * 4; }
  // (kTokens, padded channels), and a sum for each thread.
  static MMVIM_HD int shared_bytes(const NormProblem& p) {
    return 4 * (kTokens * padded(p) + kThreads);
  }

  // Calls body(channel) for the thread's channels, four at a time.
  template <class Body>
  static MMVIM_HD void each_four(const NormProblem& p, int tid, const Body& body) {
    for (int channel = 4 * lane(tid); channel < p.channels; channel += 4 * Lanes) body(channel);
  }
  // What the threads of a token have left, in an order that is the same for all of them.
  static MMVIM_HD float sum_of_token(const float* sums, int tid) {
    Floats<4> sum = {};
    MMVIM_UNROLL
    for (int i = 0; i < Lanes; i += 4) {
      const Floats<4> four = load<4>(sums + slot(tid) * Lanes + i);
      MMVIM_UNROLL
      for (int j = 0; j < 4; ++j) sum.at[j] += four.at[j];
    }
    return (sum.at[0] + sum.at[1]) + (sum.at[2] + sum.at[3]);
  }
};

// The tokens that a block begins with.
struct NormBlock {
  int64_t b, token;

  MMVIM_HD NormBlock(const NormProblem& p, int64_t index, int tokens) {
    // Divisions of 32 bits, as they take less time than those of 64.
    const uint32_t along = static_cast<uint32_t>(p.parts_of_sequence(tokens));
    b = static_cast<uint32_t>(index) / along;
    token = static_cast<int64_t>(static_cast<uint32_t>(index) % along) * tokens;
  }
};

template <int Lanes>
struct NormForward {
  using Params = NormProblem;
  using Threads = NormThreads<Lanes>;
  struct Registers {};
  static constexpr int kMostThreads = Threads::kThreads;

  static MMVIM_HD int64_t blocks(const Params& p) {
    return p.batch * p.parts_of_sequence(Threads::kTokens);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return Threads::shared_bytes(p); }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const NormBlock block(p, index, Threads::kTokens);
    float* totals = reinterpret_cast<float*>(shared);
    float* sums = totals + Threads::kTokens * Threads::padded(p);
    each([&](int tid, Registers&) {
      const int64_t token = block.token + Threads::slot(tid);
      if (token >= p.length) return;
      const TypedRows x = p.x.at(block.b, token), added = p.added.at(block.b, token);
      const TypedRows total = p.total.at(block.b, token);
      float* own = totals + Threads::slot(tid) * Threads::padded(p);
      float squares = 0.0f;
      Threads::each_four(p, tid, [&](int channel) {
        Floats<4> sum = x.read(channel, p.channels);
        const Floats<4> more = added.read(channel, p.channels);
        MMVIM_UNROLL
        for (int i = 0; i < 4; ++i) sum.at[i] += more.at[i];
        sum = total.write(channel, p.channels, sum);
        store(own + channel, sum);
        MMVIM_UNROLL
        for (int i = 0; i < 4; ++i) squares = multiply_add(sum.at[i], sum.at[i], squares);
      });
      sums[tid] = squares;
    });
    each([&](int tid, Registers&) {
      const int64_t token = block.token + Threads::slot(tid);
      if (token >= p.length) return;
      const float mean = Threads::sum_of_token(sums, tid) / static_cast<float>(p.channels);
      const float scale = 1.0f / sqrtf(mean + p.eps);
      const TypedRows normed = p.normed.at(block.b, token);
      const float* own = totals + Threads::slot(tid) * Threads::padded(p);
      Threads::each_four(p, tid, [&](int channel) {
        Floats<4> value = load<4>(own + channel);
        const Floats<4> weight = p.weight.read(channel, p.channels);
        MMVIM_UNROLL
        for (int i = 0; i < 4; ++i) value.at[i] *= scale * weight.at[i];
        normed.write(channel, p.channels, value);
      });
      if (Threads::lane(tid) == 0) p.scales[block.b * p.length + token] = scale;
    });
  }
};

// With y = x s w and s = (mean(x^2) + eps)^(-1/2): dx = s (w dy - x s^2 mean(w dy x)) + what
// reaches x otherwise, and dw = sum of dy x s. What is read twice comes from the caches the second
// time.
template <int Lanes>
struct NormBackward {
  using Params = NormProblem;
  using Threads = NormThreads<Lanes>;
  struct Registers {};
  static constexpr int kMostThreads = Threads::kThreads;

  static MMVIM_HD int64_t blocks(const Params& p) {
    return p.batch * p.parts_of_sequence(p.part_tokens);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params& p) { return Threads::shared_bytes(p); }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const NormBlock block(p, index, p.part_tokens);
    const int64_t rest = p.length - block.token;
    const int64_t end = block.token + (rest < p.part_tokens ? rest : p.part_tokens);
    const int padded = Threads::padded(p);
    float* weights = reinterpret_cast<float*>(shared);  // gradients, of each slot its own
    float* sums = weights + Threads::kTokens * padded;
    each([&](int tid, Registers&) {
      float* own = weights + Threads::slot(tid) * padded;
      Threads::each_four(p, tid, [&](int channel) { store(own + channel, Floats<4>{}); });
    });
    for (int64_t first = block.token; first < end; first += Threads::kTokens) {
      each([&](int tid, Registers&) {
        const int64_t token = first + Threads::slot(tid);
        if (token >= end) return;
        const TypedRows grads = p.grad_normed.at(block.b, token);
        const TypedRows total = p.total.at(block.b, token);
        float dot = 0.0f;
        Threads::each_four(p, tid, [&](int channel) {
          const Floats<4> grad = grads.read(channel, p.channels);
          const Floats<4> x = total.read(channel, p.channels);
          const Floats<4> weight = p.weight.read(channel, p.channels);
          MMVIM_UNROLL
          for (int i = 0; i < 4; ++i) dot = multiply_add(grad.at[i] * weight.at[i], x.at[i], dot);
        });
        sums[tid] = dot;
      });
      each([&](int tid, Registers&) {
        const int64_t token = first + Threads::slot(tid);
        if (token >= end) return;
        const TypedRows grads = p.grad_normed.at(block.b, token);
        const TypedRows others = p.grad_total.at(block.b, token);
        const TypedRows total = p.total.at(block.b, token), out = p.grad_x.at(block.b, token);
        const float s = p.scales[block.b * p.length + token];
        const float mean = Threads::sum_of_token(sums, tid) / static_cast<float>(p.channels);
        const float pull = -s * s * s * mean;
        float* own = weights + Threads::slot(tid) * padded;
        Threads::each_four(p, tid, [&](int channel) {
          const Floats<4> grad = grads.read(channel, p.channels);
          const Floats<4> x = total.read(channel, p.channels);
          const Floats<4> weight = p.weight.read(channel, p.channels);
          Floats<4> grad_x = {}, grad_weight = load<4>(own + channel);
          if (others.rows.data) grad_x = others.read(channel, p.channels);
          MMVIM_UNROLL
          for (int i = 0; i < 4; ++i) {
            const float scaled = grad.at[i] * s;
            grad_x.at[i] += multiply_add(x.at[i], pull, scaled * weight.at[i]);
            grad_weight.at[i] = multiply_add(scaled, x.at[i], grad_weight.at[i]);
          }
          out.write(channel, p.channels, grad_x);
          store(own + channel, grad_weight);
        });
      });
    }
    each([&](int tid, Registers&) {
      for (int channel = tid; channel < p.channels; channel += kMostThreads) {
        float sum = 0.0f;
        MMVIM_UNROLL
        for (int slot = 0; slot < Threads::kTokens; ++slot) sum += weights[slot * padded + channel];
        p.parts[index * int64_t{p.channels} + channel] = sum;
      }
    });
  }
};

}  // namespace mmvim::cuda
