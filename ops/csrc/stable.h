// What all operators share: torch's stable names, and results that are not wanted.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

namespace mmvim {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Sizes sizes_of(const Tensor& tensor) {
  return Sizes(tensor.sizes().begin(), tensor.sizes().end());
}

// As torch's, past its dispatcher where there is nothing to do: that takes a microsecond.
inline Tensor to_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}
inline Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// For a result that is not wanted. Each has its own: results of an operator must not alias.
inline Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, Sizes{0}); }
inline std::vector<Tensor> nothings(int count, const Tensor& like) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < count; ++i) tensors.push_back(nothing(like));
  return tensors;
}

template <size_t... I>
auto as_tuple(const std::vector<Tensor>& tensors, std::index_sequence<I...>) {
  return std::make_tuple(tensors[I]...);
}
template <size_t N>
auto as_tuple(const std::vector<Tensor>& tensors) {
  return as_tuple(tensors, std::make_index_sequence<N>());
}

}  // namespace mmvim
