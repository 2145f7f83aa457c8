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
      STD_TORCH_CHECK(each.weight.size(1) == directions_[0].weight.size(1),
                      "both convolutions must be of the same width");
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
    const int64_t per_sequence = ceil_div(lead_.size(1), kTokens);
    const Kernels& use = kernels();
    torch::stable::parallel_for(
        0, lead_.size(0) * per_sequence, 1, [&](int64_t begin, int64_t end) {
          for (int64_t item = begin; item < end; ++item) {
            const int64_t b = item / per_sequence;
            ConvBlock block = part(b, 0, lead_.size(2));
            block.first = item % per_sequence * kTokens;
            block.count = std::min(kTokens, block.length - block.first);
            for (size_t d = 0; d < views.size(); ++d) block.convs[d].out = views[d].rows(b, 0);
            use.conv_forward(block);
          }
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
    const int64_t channels = lead_.size(2), per_sequence = ceil_div(channels, kChannels);
    const Kernels& use = kernels();
    const int64_t scratch_floats = use.conv_scratch(part(0, 0, channels));
    for_each_item(lead_.size(0) * per_sequence, scratch_floats, [&](int64_t item, float* scratch) {
      const int64_t b = item / per_sequence, first = item % per_sequence * kChannels;
      ConvBlock block = part(b, first, std::min(kChannels, channels - first));
      block.scratch = scratch;
      block.grad_x = grad_x_view.rows(b, first);
      for (size_t d = 0; d < grads.size(); ++d) {
        block.convs[d].grad_out = grads[d].rows(b, first);
        block.convs[d].parameters =
            static_cast<float*>(parameters[d].data_ptr()) + b * (width + 1) * ld + first;
      }
      use.conv_backward(block);
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
  static constexpr int64_t kTokens = 64;    // of a forward part
  static constexpr int64_t kChannels = 48;  // of a backward part

  // Some channels of a sequence.
  ConvBlock part(int64_t b, int64_t first, int64_t count) const {
    ConvBlock block;
    block.directions = static_cast<int>(directions_.size());
    block.length = lead_.size(1);
    block.width = directions_[0].weight.size(1);
    block.ld = padded(lead_.size(2));
    block.channels = count;
    if (lead_.size(0) > 0) block.x = x_.rows(b, first);
    for (size_t d = 0; d < directions_.size(); ++d) {
      block.convs[d].weight = weights_[d].data() + first;
      block.convs[d].bias = biases_[d].data() + first;
      block.convs[d].reverse = directions_[d].reverse;
    }
    return block;
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
