// What Python calls by ctypes.

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
