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

// The versions of CUDA that the driver is for and that this library's runtime is of: 13000 is 13.0,
// 0 that there is no driver.
MMVIM_EXPORT void mmvim_cuda_versions(int* driver, int* runtime) {
  *driver = *runtime = 0;
#ifndef MMVIM_EMULATE
  cudaDriverGetVersion(driver);
  cudaRuntimeGetVersion(runtime);
#endif
}

// Threads a channel and direction; 0 leaves them to the rule, as does a number whose kernel needs
// more shared memory than there is, `if_it_fits`. `general`: no kernel for Vim alone.
MMVIM_EXPORT void mmvim_cuda_force_splits(int forward, int backward, bool if_it_fits,
                                          bool general) {
  auto& forced = mmvim::cuda::forced_splits();
  forced.general = general;
  forced.forward = forward;
  forced.backward = backward;
  forced.if_it_fits = if_it_fits;
}
