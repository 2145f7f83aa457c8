// The gradients of parameters: the sum over parts of what blocks left for each, transposed.

#pragma once

#include "portable.h"

namespace mmvim::cuda {

struct ParameterSumsProblem {
  static constexpr int kMost = 4;
  const float* parts = nullptr;  // (batch, all columns, channels)
  int64_t batch = 0, channels = 0;
  int count = 0;
  int columns[kMost] = {};  // of each parameter, one after the other
  float* out[kMost] = {};   // (channels, columns), or null where not wanted
};

// The parts of a sum are shared out among threads: there may be hundreds, and a thread waits for
// memory at every few.
struct ParameterSums {
  using Params = ParameterSumsProblem;
  struct Registers {};
  static constexpr int kLanes = 32, kShares = 8, kMostThreads = kLanes * kShares;

  static MMVIM_HD int64_t rows(const Params& p) {
    int64_t rows = 0;
    for (int i = 0; i < p.count; ++i) rows += p.columns[i];
    return rows;
  }
  static MMVIM_HD int64_t blocks(const Params& p) {
    return ceil_div<int64_t>(rows(p) * p.channels, kLanes);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params&) { return 4 * kMostThreads; }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t block, char* shared) {
    float* shares = reinterpret_cast<float*>(shared);
    const int64_t items = rows(p) * p.channels;
    each([&](int tid, Registers&) {
      const int64_t item = block * kLanes + tid % kLanes;
      if (item >= items) return;
      float sum = 0.0f;
      MMVIM_UNROLL_BY(8)
      for (int64_t b = tid / kLanes; b < p.batch; b += kShares) sum += p.parts[b * items + item];
      shares[tid] = sum;
    });
    each([&](int tid, Registers&) {
      const int64_t item = block * kLanes + tid;
      if (tid >= kLanes || item >= items) return;
      float sum = 0.0f;
      MMVIM_UNROLL
      for (int i = 0; i < kShares; ++i) sum += shares[i * kLanes + tid];
      const int64_t channel = item % p.channels;
      int64_t column = item / p.channels;
      for (int i = 0; i < p.count; ++i) {
        if (column < p.columns[i]) {
          if (p.out[i]) p.out[i][channel * p.columns[i] + column] = sum;
          return;
        }
        column -= p.columns[i];
      }
    });
  }
};

}  // namespace mmvim::cuda
