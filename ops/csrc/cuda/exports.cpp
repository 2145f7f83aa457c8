// What Python calls by ctypes.

#include <vector>

#include "scan_kernels.h"
#include "tensors.h"

#define MMVIM_EXPORT extern "C" __attribute__((visibility("default")))

// Whether the torch that is loaded names its CUDA streams: one for CPUs alone does not.
MMVIM_EXPORT bool mmvim_cuda_knows_streams() {
#ifdef MMVIM_EMULATE
  return false;
#else
  return &aoti_torch_get_current_cuda_stream != nullptr;
#endif
}

// Threads a channel and direction; 0 leaves them to the rule.
MMVIM_EXPORT void mmvim_cuda_force_splits(int forward, int backward) {
  mmvim::cuda::forced_splits() = {forward, backward};
}

// The rule for kernels of these splits, which would need so much shared memory a block and of which
// two fit on a multiprocessor.
MMVIM_EXPORT int mmvim_cuda_choose_split(bool backward, const int* splits, const int* shared_bytes,
                                         int count, int64_t channels, int states,
                                         int multiprocessors, int shared_limit) {
  std::vector<mmvim::cuda::Candidate> candidates;
  for (int i = 0; i < count; ++i) {
    const int64_t blocks = mmvim::cuda::ceil_div<int64_t>(channels * splits[i], 64);
    candidates.push_back({splits[i], states, blocks, shared_bytes[i], 2});
  }
  mmvim::cuda::Device device;
  device.multiprocessors = multiprocessors;
  device.shared_bytes = shared_limit;
  const auto& cost = backward ? mmvim::cuda::kBackwardCost : mmvim::cuda::kForwardCost;
  return mmvim::cuda::choose_split(candidates.data(), count, cost, device);
}

// Shared memory of a block that scans both directions of a long sequence, with numbers of so many
// bytes and a state saved every 128 tokens; 0 where no kernel has this split.
MMVIM_EXPORT int mmvim_cuda_shared_bytes(bool backward, int number_bytes, int split, int states,
                                         int rank) {
  mmvim::cuda::BackwardProblem problem;
  problem.directions = 2;
  problem.gated = true;
  problem.states = states;
  problem.rank = rank;
  problem.tiles_a_chunk = 128 / mmvim::cuda::kTile;
  problem.tiles = 2 * problem.tiles_a_chunk;
  if (backward) {
    return number_bytes == 4
               ? mmvim::cuda::backward_shared_bytes<float>(problem, split)
               : mmvim::cuda::backward_shared_bytes<mmvim::cuda::BFloat16>(problem, split);
  }
  mmvim::cuda::ForwardProblem forward;
  static_cast<mmvim::cuda::Problem&>(forward) = problem;
  return number_bytes == 4
             ? mmvim::cuda::forward_shared_bytes<float>(forward, split)
             : mmvim::cuda::forward_shared_bytes<mmvim::cuda::BFloat16>(forward, split);
}
