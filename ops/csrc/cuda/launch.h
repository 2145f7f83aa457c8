// Runs an algorithm made of phases: as a CUDA kernel, or, with MMVIM_EMULATE, in loops on the host.
//
// An algorithm has Params, Registers, kMostThreads, blocks(), threads() and shared_bytes() of a
// problem, and run(each, params, block, shared), which hands its phases to `each` in turn.

#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "portable.h"

#ifdef MMVIM_EMULATE
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace mmvim::cuda {

// Where to run; nothing else is asked of the device.
struct Device {
  int index = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most a block may have
  int64_t parts_bytes = 64 << 20;  // of what blocks leave to be summed up in a fixed order
  void* stream = nullptr;
};

class LaunchError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

#ifdef MMVIM_EMULATE

template <class Algorithm>
void launch(const typename Algorithm::Params& params, const Device&) {
  for (int64_t block = 0; block < Algorithm::blocks(params); ++block)
    emulate<Algorithm>(params, block);
}

#else

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the runtime would report it once more, after the next launch
  throw LaunchError(std::string(what) + " failed: " + cudaGetErrorString(error));
}

// Asynchronous, on the stream of `device`, which must be the current one.
template <class Algorithm>
void launch(const typename Algorithm::Params& params, const Device& device);

#ifdef __CUDACC__

// How many blocks of an algorithm a multiprocessor shall have registers for: kBlocks, if it says.
template <class Algorithm>
constexpr int blocks_at_once(decltype(Algorithm::kBlocks)) {
  return Algorithm::kBlocks;
}
template <class Algorithm>
constexpr int blocks_at_once(...) {
  return 1;
}

template <class Registers>
struct DeviceThreads {
  Registers own;

  template <class Phase>
  __device__ __forceinline__ void operator()(const Phase& phase) {
    phase(static_cast<int>(threadIdx.x), own);
    __syncthreads();
  }
};

template <class Algorithm>
__global__ void __launch_bounds__(Algorithm::kMostThreads, blocks_at_once<Algorithm>(0))
    kernel(const __grid_constant__ typename Algorithm::Params params) {
  extern __shared__ __align__(16) char shared[];
  DeviceThreads<typename Algorithm::Registers> each;
  Algorithm::run(each, params, static_cast<int64_t>(blockIdx.x), shared);
}

// Once a kernel and device: a block may have all the shared memory that there is, whatever the
// first problem asks for, since another thread may launch the same kernel for another one. An
// algorithm that says how many blocks shall run at once needs the shared memory of all of them.
template <class Algorithm>
void prepare(const Device& device) {
  static std::atomic<uint64_t> prepared{0};  // a bit for each of the first devices
  const uint64_t bit = device.index < 64 ? uint64_t{1} << device.index : 0;
  if (prepared.load(std::memory_order_acquire) & bit) return;
  const auto set = [](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(kernel<Algorithm>, attribute, value), "asking for shared memory");
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
  if (blocks_at_once<Algorithm>(0) > 1)
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  prepared.fetch_or(bit, std::memory_order_release);
}

template <class Algorithm>
void launch(const typename Algorithm::Params& params, const Device& device) {
  const int64_t blocks = Algorithm::blocks(params);
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw LaunchError(std::to_string(blocks) + " blocks are more than a launch can have");
  const int shared = Algorithm::shared_bytes(params);
  prepare<Algorithm>(device);
  kernel<Algorithm><<<static_cast<unsigned>(blocks), Algorithm::threads(params), shared,
                      static_cast<cudaStream_t>(device.stream)>>>(params);
  check(cudaGetLastError(), "launching a kernel");
}

#endif  // __CUDACC__
#endif  // MMVIM_EMULATE

}  // namespace mmvim::cuda
