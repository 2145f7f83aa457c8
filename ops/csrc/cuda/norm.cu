// Compiles the normalisation.

#include "norm_kernels.h"

namespace mmvim::cuda {
namespace {

// Threads of a token: of few a block takes more tokens, which share what its launch costs; of many
// it needs less shared memory.
constexpr int kUsualLanes = 16, kMostLanes = 256;
constexpr int kUsualChannels = 1024;

template <template <int> class Algorithm>
void choose_and_launch(const NormProblem& p, const Device& device) {
  if (p.channels <= kUsualChannels) {
    launch<Algorithm<kUsualLanes>>(p, device);
  } else {
    launch<Algorithm<kMostLanes>>(p, device);
  }
}

}  // namespace

// As many as leave each multiprocessor a few blocks, so that there are few parts to be summed up.
int norm_part_tokens(const NormProblem& p, const Device& device) {
  constexpr int64_t kStep = NormThreads<kUsualLanes>::kTokens;
  const int64_t blocks = 4 * int64_t{device.multiprocessors};
  const int64_t steps = ceil_div<int64_t>(p.batch * p.length, blocks * kStep);
  return static_cast<int>(kStep * (steps > 0 ? steps : 1));
}

void norm_forward(const NormProblem& problem, const Device& device) {
  choose_and_launch<NormForward>(problem, device);
}
void norm_backward(const NormProblem& problem, const Device& device) {
  choose_and_launch<NormBackward>(problem, device);
}

}  // namespace mmvim::cuda
