// The gradients of parameters as tensors, from what blocks left of them.

#pragma once

#include "parameter_sums.h"
#include "tensors.h"

namespace mmvim::cuda {

extern template void launch<ParameterSums>(const ParameterSumsProblem&, const Device&);

// Fills `grads` in, where there is something to fill, with the sums over `parts` in the shapes and
// types of the parameters: (parts, columns of all parameters in this order, channels).
inline void sum_parameters(const Tensor& parts, const std::vector<const Tensor*>& parameters,
                           const std::vector<Tensor*>& grads, const std::vector<int>& columns) {
  const OnDeviceOf on(parts);
  ParameterSumsProblem p;
  p.parts = floats(parts);
  p.batch = parts.size(0);
  p.channels = parts.size(2);
  p.count = static_cast<int>(columns.size());
  for (int i = 0; i < p.count; ++i) {
    p.columns[i] = columns[i];
    if (grads[i] == nullptr) continue;
    *grads[i] = new_contiguous(*parameters[i], ScalarType::Float);
    p.out[i] = floats(*grads[i]);
  }
  launch<ParameterSums>(p, on.device());
  for (int i = 0; i < p.count; ++i)
    if (grads[i]) *grads[i] = to_type(*grads[i], parameters[i]->scalar_type());
}

}  // namespace mmvim::cuda
