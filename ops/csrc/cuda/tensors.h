// Between torch's tensors and the kernels' plain pointers: number types, views, parameters, and the
// device and stream to run on.

#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../stable.h"
#include "launch.h"
#include "scan.h"

#ifdef MMVIM_EMULATE
// The same operators on the host, under another name: their schemas are the tests'.
#define MMVIM_IMPLEMENT(m) STABLE_TORCH_LIBRARY_IMPL(mmvim_emulated, CPU, m)
#else
#define MMVIM_IMPLEMENT(m) STABLE_TORCH_LIBRARY_IMPL(mmvim, CUDA, m)
// Weak, because torch's CPU libraries do not have it; there are no CUDA tensors with them either.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device,
                                                                            void** stream);
#endif

namespace mmvim::cuda {

// Makes the device of a tensor the current one while it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor)
#ifdef MMVIM_EMULATE
  {
    (void)tensor;
    device_.multiprocessors = emulated_multiprocessors;
    device_.shared_bytes = emulated_shared_bytes;
    device_.parts_bytes = emulated_parts_bytes;
  }
#else
      : guard_(tensor.get_device_index()) {
    const int index = tensor.get_device_index();
    // The guard tells torch's CUDA runtime; this library has one of its own.
    check(cudaSetDevice(index), "choosing the device");
    device_.index = index;
    device_.multiprocessors = attribute<cudaDevAttrMultiProcessorCount>(index);
    device_.shared_bytes = attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(index);
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &device_.stream) == 0,
                    "torch did not name the current CUDA stream");
  }
#endif
  const Device& device() const { return device_; }

 private:
#ifndef MMVIM_EMULATE
  // Asked once a device: an operator is called thousands of times a second.
  template <cudaDeviceAttr Which>
  static int attribute(int index) {
    static std::atomic<int> known[64];  // 0: not asked yet
    int value = index < 64 ? known[index].load(std::memory_order_relaxed) : 0;
    if (value != 0) return value;
    check(cudaDeviceGetAttribute(&value, Which, index), "asking what the device has");
    if (index < 64) known[index].store(value, std::memory_order_relaxed);
    return value;
  }
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Device device_;
};

// The type that all activations are read in: their own, or float32 where they differ.
inline ScalarType common_type(const std::vector<OptionalTensor>& tensors) {
  ScalarType common = tensors[0]->scalar_type();
  for (const OptionalTensor& tensor : tensors) {
    if (!tensor) continue;
    const ScalarType type = tensor->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 ||
                        type == ScalarType::Half,
                    "the CUDA kernels take float32, bfloat16 and float16; convert the inputs, or "
                    "use backend='chunked'");
    if (type != common) common = ScalarType::Float;
  }
  return common;
}

// Calls `body` with a value of the kernels' type for torch's.
template <class Body>
auto with_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::BFloat16: return body(BFloat16{});
    default: return body(Half{});
  }
}

inline int64_t size_of(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

inline int64_t largest_divisor_of_16(int64_t number) {
  int64_t divisor = 16;
  while (number % divisor != 0) divisor /= 2;
  return divisor;
}

// A tensor of rows (B, L, ..., columns) in a type, with adjacent columns: the given one where it is
// like that, else a copy.
class RowsOf {
 public:
  RowsOf(const Tensor& given, ScalarType type) : tensor_(to_type(given, type)) {
    const int last = static_cast<int>(tensor_.dim()) - 1;
    if (tensor_.stride(last) != 1 && tensor_.size(last) > 1)
      tensor_ = to_contiguous(tensor_);
  }

  const Tensor& tensor() const { return tensor_; }

  // Columns from `first` on. Blocks begin at multiples of `channels` where groups of so many are
  // adjacent columns; (B, L, groups, columns) has groups of its own.
  Rows rows(int64_t first = 0, int64_t channels = 0) const {
    const int64_t size = size_of(tensor_.scalar_type());
    Rows rows;
    rows.data = static_cast<char*>(tensor_.data_ptr()) + first * size;
    // Strides of dimensions with one entry say nothing, and must not lead to an address: even a
    // copy of nothing may need one that is aligned.
    rows.sequence = tensor_.size(0) > 1 ? tensor_.stride(0) * size : 0;
    rows.token = tensor_.size(1) > 1 ? tensor_.stride(1) * size : 0;
    rows.group = channels * size;
    if (tensor_.dim() == 4) rows.group = tensor_.size(2) > 1 ? tensor_.stride(2) * size : 0;
    const int64_t address = reinterpret_cast<intptr_t>(rows.data);
    rows.alignment = static_cast<int>(
        largest_divisor_of_16(address | rows.sequence | rows.token | rows.group));
    return rows;
  }

 private:
  Tensor tensor_;
};

// A parameter as the kernels read it: float32, contiguous.
class Parameter {
 public:
  Parameter() = default;
  explicit Parameter(const OptionalTensor& given) {
    if (given) tensor_ = to_contiguous(to_type(*given, ScalarType::Float));
  }
  const float* data() const {
    return tensor_ ? static_cast<const float*>(tensor_->data_ptr()) : nullptr;
  }

 private:
  OptionalTensor tensor_;
};

inline Tensor new_contiguous(const Tensor& like, ScalarType type) {
  return torch::stable::new_empty(like, sizes_of(like), type);
}
inline float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

}  // namespace mmvim::cuda
