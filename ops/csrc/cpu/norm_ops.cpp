// The CPU implementation of the normalisation operators: mmvim_ops.library has their schemas.

#include <algorithm>

#include "tensors.h"

namespace mmvim {
namespace {

// Tokens a thread takes at a time; fixed, so that the order of sums does not depend on the machine.
constexpr int64_t kTokens = 64;

// Runs body(b, first token, rows) for all parts of a batch, with what they share filled in.
template <class Body>
void for_each_part(const Tensor& x, const Tensor& weight, double eps, const Body& body) {
  const int64_t batch = x.size(0), length = x.size(1), parts = ceil_div(length, kTokens);
  const Floats packed = pack(weight, weight.size(0));
  torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t b = part / parts, first = part % parts * kTokens;
      NormRows rows;
      rows.count = std::min(kTokens, length - first);
      rows.channels = x.size(2);
      rows.eps = static_cast<float>(eps);
      rows.weight = packed.data();
      body(part, b, first, rows);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor x, const Tensor added,
                                                const Tensor weight, double eps) {
  const Tensor total = new_contiguous(x);
  const Tensor scales = torch::stable::new_empty(x, Sizes{x.size(0), x.size(1)}, ScalarType::Float);
  const Tensor normed = torch::stable::new_empty(x, sizes_of(x), weight.scalar_type());
  const View x_view(x), added_view(added), total_view(total), normed_view(normed);
  const Kernels& use = kernels();
  for_each_part(x, weight, eps, [&](int64_t, int64_t b, int64_t first, NormRows& rows) {
    rows.x = x_view.rows(b, 0, first);
    rows.added = added_view.rows(b, 0, first);
    rows.total = total_view.rows(b, 0, first);
    rows.normed = normed_view.rows(b, 0, first);
    rows.scales = static_cast<float*>(scales.data_ptr()) + b * x.size(1) + first;
    use.norm_forward(rows);
  });
  return {normed, total, scales};
}

std::tuple<Tensor, Tensor> add_rms_norm_backward(const Tensor grad_normed,
                                                 const OptionalTensor grad_total,
                                                 const Tensor total, const Tensor scales,
                                                 const Tensor weight) {
  const int64_t parts = ceil_div(total.size(1), kTokens) * total.size(0);
  const Tensor grad_x = new_contiguous(total);
  const Tensor shares = torch::stable::new_zeros(
      total, Sizes{parts, 1, padded(weight.size(0))}, ScalarType::Float);
  const View grad_view(grad_normed), total_view(total), grad_x_view(grad_x);
  const std::optional<View> grad_total_view = view(grad_total);
  const Tensor factors = to_contiguous(scales);
  const Kernels& use = kernels();
  for_each_part(total, weight, 0.0, [&](int64_t part, int64_t b, int64_t first, NormRows& rows) {
    rows.grad_normed = grad_view.rows(b, 0, first);
    if (grad_total_view) rows.grad_total = grad_total_view->rows(b, 0, first);
    rows.total = total_view.rows(b, 0, first);
    rows.grad_x = grad_x_view.rows(b, 0, first);
    rows.scales = static_cast<float*>(factors.data_ptr()) + b * total.size(1) + first;
    rows.grad_weight = static_cast<float*>(shares.data_ptr()) + part * padded(weight.size(0));
    use.norm_backward(rows);
  });
  return {grad_x, unpack(shares, 0, weight)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvim, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
}

}  // namespace mmvim
