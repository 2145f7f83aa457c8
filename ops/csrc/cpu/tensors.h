// Between torch's tensors and the kernels' plain pointers: views, packed parameters, scratch.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "../stable.h"
#include "kernels.h"

namespace mmvim {

// A tensor of rows (B, L, ..., columns) whose columns are adjacent in memory; every other stride is
// taken as it comes, so that a part of a wider tensor is read where it lies.
class View {
 public:
  explicit View(Tensor tensor) : tensor_(std::move(tensor)) {
    const int last = static_cast<int>(tensor_.dim()) - 1;
    const ScalarType type = tensor_.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                    "the CPU kernels take float32 and bfloat16; convert the inputs, or use "
                    "backend='chunked'");
    if (tensor_.stride(last) != 1 && tensor_.size(last) > 1) {
      tensor_ = to_contiguous(tensor_);
    }
    type_ = type == ScalarType::Float ? Type::kFloat : Type::kBFloat16;
    data_ = static_cast<char*>(tensor_.data_ptr());
  }

  const Tensor& tensor() const { return tensor_; }

  // The rows of sequence b from a column and a token on.
  Rows rows(int64_t b, int64_t column, int64_t token = 0) const {
    const int64_t width = type_ == Type::kFloat ? 4 : 2;
    const int64_t at = b * tensor_.stride(0) + token * tensor_.stride(1) + column;
    return {data_ + at * width, tensor_.stride(1), type_};
  }
  // The same of (B, L, groups, columns).
  Rows group_rows(int64_t b, int64_t group) const { return rows(b, group * tensor_.stride(2)); }

 private:
  Tensor tensor_;
  Type type_;
  char* data_;
};

inline std::optional<View> view(const OptionalTensor& tensor) {
  return tensor ? std::optional<View>(View(*tensor)) : std::nullopt;
}
inline Rows rows_or_none(const std::optional<View>& view, int64_t b, int64_t column) {
  return view ? view->rows(b, column) : Rows{};
}

// The channels of a row of parameters, padded so that rows start at vectors.
inline int64_t padded(int64_t channels) { return ceil_div(channels, 16) * 16; }

// Floats that start at a cache line: a vector that straddles two costs twice.
class Floats {
 public:
  explicit Floats(int64_t count)
      : data_(static_cast<float*>(std::aligned_alloc(64, ceil_div(count * 4 + 1, 64) * 64)),
              &std::free) {
    STD_TORCH_CHECK(data_, "out of memory: ", count, " floats could not be allocated");
  }
  float* data() const { return data_.get(); }

 private:
  std::unique_ptr<float, decltype(&std::free)> data_;
};

// A (channels, columns) parameter turned to (columns, padded(channels)) float32, times a factor.
// A (channels) one is a single column; an absent one is zeros.
inline Floats pack(const OptionalTensor& given, int64_t channels, float factor = 1.0f) {
  const int64_t columns = given && given->dim() == 2 ? given->size(1) : 1;
  Floats packed(columns * padded(channels));
  std::fill_n(packed.data(), columns * padded(channels), 0.0f);
  if (!given) return packed;
  const Tensor tensor = to_contiguous(to_type(*given, ScalarType::Float));
  const float* data = static_cast<const float*>(tensor.data_ptr());
  // Sixteen channels at a time: whole cache lines are written, and what is read stays in cache.
  for (int64_t first = 0; first < channels; first += 16) {
    const int64_t end = std::min(first + 16, channels);
    for (int64_t n = 0; n < columns; ++n)
      for (int64_t e = first; e < end; ++e)
        packed.data()[n * padded(channels) + e] = data[e * columns + n] * factor;
  }
  return packed;
}

// Runs body(item, scratch) for all items on torch's threads, each thread with scratch of its own.
template <class Body>
void for_each_item(int64_t items, int64_t scratch_floats, const Body& body) {
  std::atomic<bool> failed{false};  // an exception must not cross torch's C interface
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    try {
      const Floats scratch(scratch_floats);
      for (int64_t item = begin; item < end; ++item) body(item, scratch.data());
    } catch (...) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, "out of memory: a thread could not allocate what it needs, of which ",
                  scratch_floats, " floats are scratch");
}

inline Tensor new_contiguous(const Tensor& like) {
  return torch::stable::new_empty(like, sizes_of(like));
}

// The sum over the first dimension of (parts, rows, ld) at rows [first, first + columns), as the
// gradient of a (channels, columns) parameter. In a fixed order, whatever thread made which part.
inline Tensor unpack(const Tensor& parts, int64_t first, const Tensor& parameter) {
  const int64_t channels = parameter.size(0);
  const int64_t columns = parameter.dim() == 2 ? parameter.size(1) : 1;
  const int64_t count = parts.size(0), rows = parts.size(1), ld = parts.size(2);
  const Tensor sum = torch::stable::new_empty(parameter, sizes_of(parameter), ScalarType::Float);
  const float* data = static_cast<const float*>(parts.data_ptr());
  float* out = static_cast<float*>(sum.data_ptr());
  std::vector<float> column(channels);
  for (int64_t n = 0; n < columns; ++n) {
    std::fill(column.begin(), column.end(), 0.0f);
    for (int64_t p = 0; p < count; ++p) {
      const float* row = data + (p * rows + first + n) * ld;
      for (int64_t e = 0; e < channels; ++e) column[e] += row[e];
    }
    for (int64_t e = 0; e < channels; ++e) out[e * columns + n] = column[e];
  }
  return to_type(sum, parameter.scalar_type());
}

}  // namespace mmvim
