// The normalisation operators on a GPU: mmvim_ops.library has their schemas.

#include "norm_kernels.h"
#include "parameter_grads.h"
#include "tensors.h"

namespace mmvim::cuda {
namespace {

// A tensor in its own type, with adjacent channels.
class TypedTensor {
 public:
  explicit TypedTensor(const Tensor& given) : rows_(given, common_type({given})) {}

  TypedRows rows() const {
    const Tensor& tensor = rows_.tensor();
    const ScalarType type = tensor.scalar_type();
    TypedRows typed;
    typed.rows = rows_.rows();
    typed.type = type == ScalarType::Float      ? NumberType::kFloat
                 : type == ScalarType::BFloat16 ? NumberType::kBFloat16
                                                : NumberType::kHalf;
    typed.whole = tensor.size(2) % 4 == 0 && typed.rows.alignment >= 4 * size_of(type);
    return typed;
  }

 private:
  RowsOf rows_;
};

// A weight as a sequence of one token.
Tensor as_token(const Tensor& weight) {
  return torch::stable::view(to_contiguous(weight), Sizes{1, 1, weight.size(0)});
}

NormProblem problem_of(const Tensor& x) {
  NormProblem p;
  p.batch = x.size(0);
  p.length = x.size(1);
  STD_TORCH_CHECK(x.size(2) <= kMostNormChannels, "the CUDA kernels normalise up to ",
                  kMostNormChannels, " channels, got ", x.size(2), "; use backend='chunked'");
  p.channels = static_cast<int>(x.size(2));
  return p;
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor x, const Tensor added,
                                                const Tensor weight, double eps) {
  const OnDeviceOf on(x);
  const Tensor total = new_contiguous(x, x.scalar_type());
  const Tensor normed = new_contiguous(x, weight.scalar_type());
  const Tensor scales = torch::stable::new_empty(x, Sizes{x.size(0), x.size(1)}, ScalarType::Float);
  const TypedTensor x_rows(x), added_rows(added), weight_rows(as_token(weight));
  NormProblem p = problem_of(x);
  p.x = x_rows.rows();
  p.added = added_rows.rows();
  p.weight = weight_rows.rows();
  p.total = TypedTensor(total).rows();
  p.normed = TypedTensor(normed).rows();
  p.scales = floats(scales);
  p.eps = static_cast<float>(eps);
  norm_forward(p, on.device());
  return {normed, total, scales};
}

std::tuple<Tensor, Tensor> add_rms_norm_backward(const Tensor grad_normed,
                                                 const OptionalTensor grad_total,
                                                 const Tensor total, const Tensor scales,
                                                 const Tensor weight) {
  const OnDeviceOf on(total);
  const Tensor grad_x = new_contiguous(total, total.scalar_type());
  const Tensor factors = to_contiguous(scales);
  const TypedTensor grad_rows(grad_normed), total_rows(total), weight_rows(as_token(weight));
  std::optional<TypedTensor> other_rows;
  if (grad_total) other_rows.emplace(*grad_total);
  NormProblem p = problem_of(total);
  p.grad_normed = grad_rows.rows();
  if (other_rows) p.grad_total = other_rows->rows();
  p.total = total_rows.rows();
  p.weight = weight_rows.rows();
  p.scales = floats(factors);
  p.grad_x = TypedTensor(grad_x).rows();
  p.part_tokens = norm_part_tokens(p, on.device());
  const int64_t count = p.batch * p.parts_of_sequence(p.part_tokens);
  const Tensor parts =
      torch::stable::new_empty(total, Sizes{count, 1, total.size(2)}, ScalarType::Float);
  p.parts = floats(parts);
  norm_backward(p, on.device());
  Tensor grad_weight = nothing(weight);
  sum_parameters(parts, {&weight}, {&grad_weight}, {1});
  return {grad_x, grad_weight};
}

}  // namespace

MMVIM_IMPLEMENT(m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
}

}  // namespace mmvim::cuda
