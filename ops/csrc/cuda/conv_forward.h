// The forward pass of the convolutions: see conv.h.
//
// A thread reads all of its run at once, while its block fetches the taps: what takes the time is
// to wait for memory.

#pragma once

#include "conv.h"

namespace mmvim::cuda {

template <class Shape>
struct ConvForward {
  using Params = ConvProblem;
  static constexpr int kRun = 8, kRuns = 4, kMostThreads = Shape::kLanes * kRuns;
  static constexpr int kHalo = Shape::kHalo;
  using Thread = ConvThread<Shape>;
  using Own = typename Thread::Own;
  using F = typename Shape::F;

  struct Registers {
    Own x[kRun + 2 * kHalo];  // from kHalo tokens before the run on
  };

  static MMVIM_HD int64_t blocks(const Params& p) {
    return ConvBlock::number(p, Shape::kChannels, kRun * kRuns);
  }
  static MMVIM_HD int threads(const Params&) { return kMostThreads; }
  static MMVIM_HD int shared_bytes(const Params&) { return 4 * Shape::kTaps; }

  template <class EachThread>
  static MMVIM_HD void run(EachThread& each, const Params& p, int64_t index, char* shared) {
    const ConvBlock block(p, index, Shape::kChannels, kRun * kRuns);
    float* taps = reinterpret_cast<float*>(shared);
    each([&](int tid, Registers& own) {
      Thread(p, block, tid, kRun).read(p.x, -kHalo, own.x);
      share_taps<Shape, kMostThreads>(p, block.channel, tid, taps);
    });
    each([&](int tid, Registers& own) {
      const Thread at(p, block, tid, kRun);
      if (!at.inside(0)) return;
      F x[kRun + 2 * kHalo];
      MMVIM_UNROLL
      for (int i = 0; i < kRun + 2 * kHalo; ++i) x[i] = to_floats(own.x[i]);
      if (p.convs[kCausal].weight) convolve<kCausal>(p, at, taps, x);
      if (p.convs[kAntiCausal].weight) convolve<kAntiCausal>(p, at, taps, x);
    });
  }

 private:
  template <int Direction>
  static MMVIM_HD void convolve(const Params& p, const Thread& at, const float* shared,
                                const F (&x)[kRun + 2 * kHalo]) {
    const ConvTaps<Shape> taps(shared, Direction, at.lane);
    const Rows& out = p.convs[Direction].out;
    char* to = at.at(out, 0);
    MMVIM_UNROLL
    for (int i = 0; i < kRun; ++i) {
      F y = taps.bias;
      MMVIM_UNROLL
      for (int k = 0; k < Shape::kWidth; ++k)
        add_product(taps.weight[k], x[i + (Direction == kCausal ? k : 2 * kHalo - k)], y);
      MMVIM_UNROLL
      for (int j = 0; j < Shape::kEach; ++j) y.at[j] = silu(y.at[j]);
      if (at.inside(i)) Thread::own_at(to) = to_numbers<typename Shape::T>(y);
      to += out.token;
    }
  }
};

}  // namespace mmvim::cuda
