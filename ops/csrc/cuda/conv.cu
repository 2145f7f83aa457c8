// Compiles the convolutions.

#include "conv_any.h"
#include "conv_backward.h"
#include "conv_forward.h"
#include "conv_kernels.h"

namespace mmvim::cuda {
namespace {

// What Vim has; one kernel serves all other widths.
constexpr int kUsualWidth = 4;

// Whether a thread may have two channels.
template <class T>
bool in_pairs(const ConvProblem& p) {
  int alignment = 16;
  const auto include = [&](const Rows& rows) {
    if (rows.data && rows.alignment < alignment) alignment = rows.alignment;
  };
  include(p.x);
  include(p.grad_x);
  for (const Conv& conv : p.convs) {
    include(conv.out);
    include(conv.grad_out);
  }
  return p.channels % 2 == 0 && alignment >= static_cast<int>(2 * sizeof(T));
}

template <class T, template <class> class Usual, template <class> class Any>
void choose_and_launch(const ConvProblem& p, const Device& device) {
  if (p.width == kUsualWidth) {
    if (in_pairs<T>(p)) {
      launch<Usual<ConvShape<T, kUsualWidth, 2>>>(p, device);
    } else {
      launch<Usual<ConvShape<T, kUsualWidth, 1>>>(p, device);
    }
    return;
  }
  const int needed = Any<T>::shared_bytes(p);
  if (needed > device.shared_bytes) {
    throw LaunchError("a convolution of width " + std::to_string(p.width) + " needs " +
                      std::to_string(needed) + " bytes of shared memory, and this device has " +
                      std::to_string(device.shared_bytes) +
                      ": a smaller width needs less, backend='chunked' none");
  }
  launch<Any<T>>(p, device);
}

}  // namespace

// Of the usual width, a part is four runs: long ones compute less beside them twice, short ones
// keep a GPU busy that few blocks would leave idle.
int conv_part_tokens(const ConvProblem& p, const Device& device) {
  if (p.width != kUsualWidth) return 64;
  int tokens = 512;
  while (tokens > 32 && ConvBlock::number(p, 64, tokens) < 4 * device.multiprocessors) tokens /= 2;
  return tokens;
}

template <class T>
void conv_forward(const ConvProblem& problem, const Device& device) {
  choose_and_launch<T, ConvForward, ConvAnyForward>(problem, device);
}
template <class T>
void conv_backward(const ConvProblem& problem, const Device& device) {
  choose_and_launch<T, ConvBackward, ConvAnyBackward>(problem, device);
}

#define MMVIM_COMPILE_CONVS(T)                                      \
  template void conv_forward<T>(const ConvProblem&, const Device&); \
  template void conv_backward<T>(const ConvProblem&, const Device&);

MMVIM_COMPILE_CONVS(float)
MMVIM_COMPILE_CONVS(BFloat16)
MMVIM_COMPILE_CONVS(Half)

}  // namespace mmvim::cuda
