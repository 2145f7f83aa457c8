// The CPU implementations of the convolution operators: mmvim_ops.library has their schemas.

#include <algorithm>

#include "tensors.h"

namespace mmvim {
namespace {

struct Direction {
  Tensor weight;
  OptionalTensor bias;
  bool reverse;
};

// One or two convolutions of the same input.
class Problem {
 public:
  Problem(const Tensor& x, std::vector<Direction> directions)
      : lead_(x), x_(x), directions_(std::move(directions)) {
    for (const Direction& each : directions_) {
      weights_.push_back(pack(each.weight, x.size(2)));
      biases_.push_back(pack(each.bias, x.size(2)));
    }
  }

  std::vector<Tensor> forward() const {
    std::vector<Tensor> outs;
    std::vector<View> views;
    for (size_t d = 0; d < directions_.size(); ++d) {
      outs.push_back(new_contiguous(lead_));
      views.emplace_back(outs.back());
    }
    const Kernels& use = kernels();
    run(use.conv_forward, [&](ConvBlock& block, int64_t b, int64_t channel) {
      for (size_t d = 0; d < views.size(); ++d) block.convs[d].out = views[d].rows(b, channel);
    });
    return outs;
  }

  // The gradients of x, then of weight and bias of each direction.
  std::vector<Tensor> backward(const std::vector<Tensor>& grad_outs,
                               const std::vector<bool>& needs) const {
    const int64_t width = directions_[0].weight.size(1), ld = padded(lead_.size(2));
    std::vector<Tensor> parameters;
    std::vector<View> grads;
    for (const Tensor& grad : grad_outs) {
      grads.emplace_back(grad);
      parameters.push_back(torch::stable::new_zeros(lead_, Sizes{lead_.size(0), width + 1, ld},
                                                    ScalarType::Float));
    }
    const Tensor grad_x = new_contiguous(lead_);
    const View grad_x_view(grad_x);
    const Kernels& use = kernels();
    run(use.conv_backward, [&](ConvBlock& block, int64_t b, int64_t channel) {
      block.grad_x = grad_x_view.rows(b, channel);
      for (size_t d = 0; d < grads.size(); ++d) {
        block.convs[d].grad_out = grads[d].rows(b, channel);
        block.convs[d].parameters = static_cast<float*>(parameters[d].data_ptr()) +
                                    b * (width + 1) * ld + channel;
      }
    });
    std::vector<Tensor> results = {needs[0] ? grad_x : nothing(lead_)};
    for (size_t d = 0; d < directions_.size(); ++d) {
      const Direction& each = directions_[d];
      results.push_back(needs[1 + 2 * d] ? unpack(parameters[d], 0, each.weight) : nothing(lead_));
      results.push_back(needs[2 + 2 * d] && each.bias ? unpack(parameters[d], width, *each.bias)
                                                      : nothing(lead_));
    }
    return results;
  }

 private:
  template <class Kernel, class Fill>
  void run(Kernel kernel, const Fill& fill) const {
    const int64_t batch = lead_.size(0), channels = lead_.size(2);
    const int64_t size = kBlockChannels / 2, per_sequence = ceil_div(channels, size);
    if (batch == 0) return;
    ConvBlock common;
    common.directions = static_cast<int>(directions_.size());
    common.length = lead_.size(1);
    common.width = directions_[0].weight.size(1);
    common.ld = padded(channels);
    for_each_item(batch * per_sequence, kernels().conv_scratch(common),
                  [&](int64_t item, float* scratch) {
                    const int64_t b = item / per_sequence, channel = item % per_sequence * size;
                    ConvBlock block = common;
                    block.channels = std::min(size, channels - channel);
                    block.x = x_.rows(b, channel);
                    block.scratch = scratch;
                    for (size_t d = 0; d < directions_.size(); ++d) {
                      block.convs[d].weight = weights_[d].data() + channel;
                      block.convs[d].bias = biases_[d].data() + channel;
                      block.convs[d].reverse = directions_[d].reverse;
                    }
                    fill(block, b, channel);
                    kernel(block);
                  });
  }

  Tensor lead_;
  View x_;
  std::vector<Direction> directions_;
  std::vector<Floats> weights_, biases_;
};

Tensor conv1d_silu(const Tensor x, const Tensor weight, const OptionalTensor bias, bool reverse) {
  return Problem(x, {{weight, bias, reverse}}).forward()[0];
}

auto conv1d_silu_backward(const Tensor grad_out, const Tensor x, const Tensor weight,
                          const OptionalTensor bias, bool reverse, const std::vector<bool> needs) {
  return as_tuple<3>(Problem(x, {{weight, bias, reverse}}).backward({grad_out}, needs));
}

auto bi_conv1d_silu(const Tensor x, const Tensor w_f, const OptionalTensor b_f, const Tensor w_b,
                    const OptionalTensor b_b) {
  return as_tuple<2>(Problem(x, {{w_f, b_f, false}, {w_b, b_b, true}}).forward());
}

auto bi_conv1d_silu_backward(const Tensor grad_f, const Tensor grad_b, const Tensor x,
                             const Tensor w_f, const OptionalTensor b_f, const Tensor w_b,
                             const OptionalTensor b_b, const std::vector<bool> needs) {
  const Problem problem(x, {{w_f, b_f, false}, {w_b, b_b, true}});
  return as_tuple<5>(problem.backward({grad_f, grad_b}, needs));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvim, CPU, m) {
  m.impl("conv1d_silu", TORCH_BOX(&conv1d_silu));
  m.impl("conv1d_silu_backward", TORCH_BOX(&conv1d_silu_backward));
  m.impl("bi_conv1d_silu", TORCH_BOX(&bi_conv1d_silu));
  m.impl("bi_conv1d_silu_backward", TORCH_BOX(&bi_conv1d_silu_backward));
}

}  // namespace mmvim
