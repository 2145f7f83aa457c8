// The compiled convolutions, and which of them serves a problem.

#pragma once

#include "conv.h"
#include "launch.h"

namespace mmvim::cuda {

// What `part_tokens` of a problem should be.
int conv_part_tokens(const ConvProblem& problem, const Device& device);

template <class T>
void conv_forward(const ConvProblem& problem, const Device& device);
template <class T>
void conv_backward(const ConvProblem& problem, const Device& device);

}  // namespace mmvim::cuda
