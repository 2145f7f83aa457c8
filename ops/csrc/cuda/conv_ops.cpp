// The convolution operators on a GPU: mmvim_ops.library has their schemas.

#include "conv_kernels.h"
#include "parameter_grads.h"
#include "tensors.h"

namespace mmvim::cuda {
namespace {

// A direction's parameters; no weight: the direction is not wanted.
struct Given {
  OptionalTensor weight, bias;
};

// One or two convolutions of the same input, and the tensors that outlive their launch.
class Convs {
 public:
  Convs(const Tensor& x, const Given& causal, const Given& anti_causal, ScalarType type)
      : lead_(x), type_(type), x_(x, type_), given_{causal, anti_causal} {
    ConvProblem& p = problem_;
    p.batch = x.size(0);
    p.length = x.size(1);
    p.channels = x.size(2);
    p.x = x_.rows();
    for (int d = 0; d < 2; ++d) {
      if (!given_[d].weight) continue;
      const int64_t width = given_[d].weight->size(1);
      STD_TORCH_CHECK(width == kConvWidth, "the CUDA kernels take convolutions of width ",
                      kConvWidth, ", got ", width, "; use backend='chunked'");
      STD_TORCH_CHECK(p.length < INT32_MAX / 2, "the CUDA kernels take less than 2^30 tokens");
      weights_[d] = Parameter(given_[d].weight);
      biases_[d] = Parameter(given_[d].bias);
      p.convs[d].weight = weights_[d].data();
      p.convs[d].bias = biases_[d].data();
    }
  }

  // The results of the directions that are given.
  std::vector<Tensor> forward() const {
    const OnDeviceOf on(lead_);
    ConvProblem p = problem_;
    std::vector<Tensor> outs;
    for (int d = 0; d < 2; ++d) {
      if (!given_[d].weight) continue;
      outs.push_back(new_contiguous(lead_, type_));
      p.convs[d].out = RowsOf(outs.back(), type_).rows();
    }
    with_type(type_, [&](auto value) { conv_forward<decltype(value)>(p, on.device()); });
    return outs;
  }

  // The gradients of x, then of weight and bias of the directions that are given.
  std::vector<Tensor> backward(const std::vector<Tensor>& grad_outs,
                               const std::vector<bool>& needs) const {
    const OnDeviceOf on(lead_);
    ConvProblem p = problem_;
    std::vector<RowsOf> rows;  // they outlive the launch
    std::vector<Tensor> grads = nothings(static_cast<int>(1 + 2 * grad_outs.size()), lead_);
    std::vector<const Tensor*> parameters;
    std::vector<Tensor*> wanted;
    std::vector<int> columns;
    bool any_parameter = false;
    for (int d = 0; d < 2; ++d) {
      if (!given_[d].weight) continue;
      rows.emplace_back(grad_outs[rows.size()], type_);
      p.convs[d].grad_out = rows.back().rows();
      for (const OptionalTensor* each : {&given_[d].weight, &given_[d].bias}) {
        const size_t place = 1 + wanted.size();
        const bool is_wanted = needs[place] && *each;
        any_parameter = any_parameter || is_wanted;
        parameters.push_back(*each ? &**each : nullptr);
        wanted.push_back(is_wanted ? &grads[place] : nullptr);
        columns.push_back(each == &given_[d].weight ? kConvWidth : 1);
      }
    }
    if (needs[0]) {
      grads[0] = new_contiguous(lead_, type_);
      p.grad_x = RowsOf(grads[0], type_).rows();
    }
    p.part_tokens = conv_part_tokens(p, on.device());
    OptionalTensor parts;
    if (any_parameter) {
      const int64_t count = p.batch * ceil_div(p.length, int64_t{p.part_tokens});
      parts = torch::stable::new_empty(lead_, Sizes{count, p.columns(), p.channels},
                                       ScalarType::Float);
      p.parts = floats(*parts);
    }
    with_type(type_, [&](auto value) { conv_backward<decltype(value)>(p, on.device()); });
    if (parts) sum_parameters(*parts, parameters, wanted, columns);
    if (needs[0]) grads[0] = to_type(grads[0], lead_.scalar_type());
    return grads;
  }

 private:
  Tensor lead_;
  ScalarType type_;
  RowsOf x_;
  Given given_[2];
  Parameter weights_[2], biases_[2];
  ConvProblem problem_;
};

Convs one(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool reverse,
          ScalarType type) {
  const Given given = {weight, bias}, none;
  return Convs(x, reverse ? none : given, reverse ? given : none, type);
}

Tensor conv1d_silu(const Tensor x, const Tensor weight, const OptionalTensor bias, bool reverse) {
  return one(x, weight, bias, reverse, common_type({x})).forward()[0];
}

auto conv1d_silu_backward(const Tensor grad_out, const Tensor x, const Tensor weight,
                          const OptionalTensor bias, bool reverse, const std::vector<bool> needs) {
  const Convs convs = one(x, weight, bias, reverse, common_type({x, grad_out}));
  return as_tuple<3>(convs.backward({grad_out}, needs));
}

auto bi_conv1d_silu(const Tensor x, const Tensor w_f, const OptionalTensor b_f, const Tensor w_b,
                    const OptionalTensor b_b) {
  return as_tuple<2>(Convs(x, {w_f, b_f}, {w_b, b_b}, common_type({x})).forward());
}

auto bi_conv1d_silu_backward(const Tensor grad_f, const Tensor grad_b, const Tensor x,
                             const Tensor w_f, const OptionalTensor b_f, const Tensor w_b,
                             const OptionalTensor b_b, const std::vector<bool> needs) {
  const Convs convs(x, {w_f, b_f}, {w_b, b_b}, common_type({x, grad_f, grad_b}));
  return as_tuple<5>(convs.backward({grad_f, grad_b}, needs));
}

}  // namespace

MMVIM_IMPLEMENT(m) {
  m.impl("conv1d_silu", TORCH_BOX(&conv1d_silu));
  m.impl("conv1d_silu_backward", TORCH_BOX(&conv1d_silu_backward));
  m.impl("bi_conv1d_silu", TORCH_BOX(&bi_conv1d_silu));
  m.impl("bi_conv1d_silu_backward", TORCH_BOX(&bi_conv1d_silu_backward));
}

}  // namespace mmvim::cuda
