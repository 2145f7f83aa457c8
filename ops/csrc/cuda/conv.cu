// Compiles the convolutions.

#include "conv_backward.h"
#include "conv_forward.h"
#include "conv_kernels.h"

namespace mmvim::cuda {
namespace {

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

template <class T, template <class> class Pass>
void launch_pass(const ConvProblem& p, const Device& device) {
  if (in_pairs<T>(p)) {
    launch<Pass<ConvShape<T, kConvWidth, 2>>>(p, device);
  } else {
    launch<Pass<ConvShape<T, kConvWidth, 1>>>(p, device);
  }
}

}  // namespace

// A part is four runs: long ones compute less beside them twice, short ones keep a GPU busy that
// few blocks would leave idle.
int conv_part_tokens(const ConvProblem& p, const Device& device) {
  int tokens = 512;
  while (tokens > 32 && ConvBlock::number(p, 64, tokens) < 4 * device.multiprocessors) tokens /= 2;
  return tokens;
}

template <class T>
void conv_forward(const ConvProblem& problem, const Device& device) {
  launch_pass<T, ConvForward>(problem, device);
}
template <class T>
void conv_backward(const ConvProblem& problem, const Device& device) {
  launch_pass<T, ConvBackward>(problem, device);
}

#define MMVIM_COMPILE_CONVS(T)                                      \
  template void conv_forward<T>(const ConvProblem&, const Device&); \
  template void conv_backward<T>(const ConvProblem&, const Device&);

MMVIM_COMPILE_CONVS(float)
MMVIM_COMPILE_CONVS(BFloat16)
MMVIM_COMPILE_CONVS(Half)

}  // namespace mmvim::cuda
