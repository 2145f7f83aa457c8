// The compiled normalisation, and which kernel serves a problem.

#pragma once

#include "launch.h"
#include "norm.h"

namespace mmvim::cuda {

// What `part_tokens` of a problem should be.
int norm_part_tokens(const NormProblem& problem, const Device& device);

void norm_forward(const NormProblem& problem, const Device& device);
void norm_backward(const NormProblem& problem, const Device& device);

}  // namespace mmvim::cuda
