// Depthwise convolutions over the tokens with SiLU, causal, anti-causal or both of the same input:
// what the forward and the backward pass share.
//
// A thread has one channel, or a pair of adjacent ones, and a run of tokens.

#pragma once

#include "numbers.h"
#include "scan.h"

namespace mmvim::cuda {

// That of every published Mamba; other widths are left to pure torch.
constexpr int kConvWidth = 4;

enum ConvDirection { kCausal, kAntiCausal };

struct Conv {
  const float* weight = nullptr;  // (E, kConvWidth); null: nothing to do in this direction
  const float* bias = nullptr;    // (E), or null
  Rows out;                       // written by the forward pass
  Rows grad_out;                  // read by the backward pass
};

struct ConvProblem {
  Rows x;
  Conv convs[2];  // by direction
  int64_t batch = 0, length = 0, channels = 0;
  // Of the backward pass. A sequence is cut into parts of so many tokens; each leaves its sums for
  // the gradients of the taps and of the bias, causal direction first: (parts, columns(), E).
  int part_tokens = 0;
  float* parts = nullptr;  // null: not wanted
  Rows grad_x;             // no data: not wanted

  MMVIM_HD int column(int direction) const {
    return direction == kAntiCausal && convs[kCausal].weight ? kConvWidth + 1 : 0;
  }
  MMVIM_HD int columns() const {
    return column(kAntiCausal) + (convs[kAntiCausal].weight ? kConvWidth + 1 : 0);
  }
};

// Which channels, and which tokens of which sequence, are a block's.
struct ConvBlock {
  int64_t b, token, channel;
  int64_t part;  // number of the tokens among those of all sequences

  MMVIM_HD ConvBlock(const ConvProblem& p, int64_t index, int channels, int tokens) {
    // Divisions of 32 bits: those of 64 would take as long as a few tokens do.
    const uint32_t across = static_cast<uint32_t>(ceil_div<int64_t>(p.channels, channels));
    const uint32_t along = static_cast<uint32_t>(ceil_div<int64_t>(p.length, tokens));
    const uint32_t which = static_cast<uint32_t>(index) / across;
    part = which;
    channel = static_cast<int64_t>(static_cast<uint32_t>(index) % across) * channels;
    b = which / along;
    token = static_cast<int64_t>(which % along) * tokens;
  }
  static MMVIM_HD int64_t number(const ConvProblem& p, int channels, int tokens) {
    return p.batch * ceil_div<int64_t>(p.length, tokens) * ceil_div<int64_t>(p.channels, channels);
  }
};

// Each: the adjacent channels of a thread.
template <class T_, int Width, int Each>
struct ConvShape {
  using T = T_;
  static constexpr int kWidth = Width, kHalo = Width - 1, kEach = Each;
  static constexpr int kLanes = 32, kChannels = kLanes * Each;
  // In shared memory, (2, Width + 1, kStride): the taps of a direction, then its bias. The padding
  // is for those who write: adjacent numbers of the weight then go to different banks.
  static constexpr int kStride = kChannels + 8, kTaps = 2 * (Width + 1) * kStride;

  using F = Floats<Each>;
};

// A thread's channels and run.
template <class Shape>
struct ConvThread {
  using Own = Numbers<typename Shape::T, Shape::kEach>;
  int lane, run;  // lane: the first channel within the block
  int token;      // the first of the run
  int length;     // of the sequence, none of which is that of a thread without channels
  int64_t b, channel;

  MMVIM_HD ConvThread(const ConvProblem& p, const ConvBlock& block, int tid, int run_tokens)
      : lane(tid % Shape::kLanes * Shape::kEach), run(tid / Shape::kLanes),
        token(static_cast<int>(block.token) + run * run_tokens), b(block.b),
        channel(block.channel + lane) {
    length = channel < p.channels ? static_cast<int>(p.length) : 0;
  }

  // Tokens are counted from the first of the run here.
  MMVIM_HD bool inside(int i) const {
    return static_cast<unsigned>(token + i) < static_cast<unsigned>(length);
  }
  MMVIM_HD char* at(const Rows& rows, int i) const {
    const int64_t size = sizeof(typename Shape::T);
    return rows.at(b, static_cast<int64_t>(token) + i) + channel * size;
  }
  static MMVIM_HD Own& own_at(char* address) {
    return numbers_at<typename Shape::T, Shape::kEach>(address);
  }
  // Tokens from `first` on; zeros outside the sequence. All are on their way at once.
  template <int Count>
  MMVIM_HD void read(const Rows& rows, int first, Own (&to)[Count]) const {
    char* from = at(rows, first);
    MMVIM_UNROLL
    for (int i = 0; i < Count; ++i) {
      to[i] = {};
      if (inside(first + i)) to[i] = own_at(from);
      from += rows.token;
    }
  }
};

template <int Count>
MMVIM_HD void add_product(const Floats<Count>& a, const Floats<Count>& b, Floats<Count>& sum) {
  MMVIM_UNROLL
  for (int i = 0; i < Count; ++i) sum.at[i] = multiply_add(a.at[i], b.at[i], sum.at[i]);
}

// The block's taps to shared memory, by all its threads.
template <class Shape, int Threads>
MMVIM_HD void share_taps(const ConvProblem& p, int64_t first, int tid, float* shared) {
  static_assert(Shape::kChannels <= Threads && Shape::kChannels * Shape::kWidth % Threads == 0,
                "every thread has as many taps to fetch");
  const int64_t rest = p.channels - first;
  const int count = static_cast<int>(rest < Shape::kChannels ? rest : Shape::kChannels);
  MMVIM_UNROLL
  for (int direction = 0; direction < 2; ++direction) {
    const Conv& conv = p.convs[direction];
    if (!conv.weight) continue;
    float* to = shared + direction * (Shape::kWidth + 1) * Shape::kStride;
    MMVIM_UNROLL
    for (int j = 0; j < Shape::kChannels * Shape::kWidth / Threads; ++j) {
      const int i = tid + j * Threads, k = i % Shape::kWidth, c = i / Shape::kWidth;
      to[k * Shape::kStride + c] = c < count ? conv.weight[first * Shape::kWidth + i] : 0.0f;
    }
    if (tid < Shape::kChannels) {
      const bool given = conv.bias && tid < count;
      to[Shape::kWidth * Shape::kStride + tid] = given ? conv.bias[first + tid] : 0.0f;
    }
  }
}

// The taps and the bias of a thread's channels.
template <class Shape>
struct ConvTaps {
  typename Shape::F weight[Shape::kWidth], bias;

  ConvTaps() = default;
  MMVIM_HD ConvTaps(const float* shared, int direction, int lane) {
    shared += direction * (Shape::kWidth + 1) * Shape::kStride + lane;
    MMVIM_UNROLL
    for (int k = 0; k < Shape::kWidth; ++k)
      weight[k] = load<Shape::kEach>(shared + k * Shape::kStride);
    bias = load<Shape::kEach>(shared + Shape::kWidth * Shape::kStride);
  }
};

}  // namespace mmvim::cuda
