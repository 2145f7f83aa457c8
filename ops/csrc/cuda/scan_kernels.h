// The compiled scans, and which of them serves a problem.

#pragma once

#include <atomic>

#include "launch.h"
#include "scan_backward.h"
#include "scan_forward.h"

namespace mmvim::cuda {

// Threads a channel and direction, by which compiled kernels differ. 16 states are what Vim has, and
// 1 what VMamba has; one kernel serves all other numbers, and 1 where few channels would leave a GPU
// idle or a block's shared memory has no room for 64.
constexpr int kUsualStates = 16;
constexpr int kOtherSplit = 8;

// Splits that shall be used in place of the rule's, for tests and measurements; 0: the rule's.
struct ForcedSplits {
  std::atomic<int> forward{0}, backward{0};
  std::atomic<bool> if_it_fits{false};  // else the rule's, not an error
};
ForcedSplits& forced_splits();

// What one kernel would need for a problem.
struct Candidate {
  int split;
  int states;  // that it computes, given or not
  int64_t blocks;
  int shared_bytes;
  int blocks_at_once;  // on a multiprocessor, by registers
};

// Instructions of a thread for each token: so many for each of its states, for its share of what is
// done once a channel, and in any case. Fitted to counts of what the machine code that nvcc 13.0
// made for sm_90 executes; no GPU has confirmed that they predict times.
struct Cost {
  double state, channel, token;
};
constexpr Cost kForwardCost = {5.5, 51.0, 13.0};
constexpr Cost kBackwardCost = {19.5, 310.0, 54.0};

// The split whose kernel should take least time, or 0 if none fits into the device's shared memory.
int choose_split(const Candidate* candidates, int count, const Cost& cost, const Device& device);

// The split for a problem. A block takes 64 / split channels.
template <class T>
int forward_split(const ForwardProblem& problem, const Device& device);
template <class T>
int backward_split(const BackwardProblem& problem, const Device& device);

template <class T>
void scan_forward(ForwardProblem problem, int split, const Device& device);
template <class T>
void scan_backward(BackwardProblem problem, int split, const Device& device);

}  // namespace mmvim::cuda
