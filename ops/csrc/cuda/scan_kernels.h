// The compiled scans, and which of them serves a problem.

#pragma once

#include <atomic>

#include "launch.h"
#include "scan_backward.h"
#include "scan_forward.h"

namespace mmvim::cuda {

// Threads a channel and direction, by which compiled kernels differ. 16 states are what Vim has,
// for whose blocks alone there are kernels, too, and 1 what VMamba has; one kernel serves all other
// numbers, and 1 where few channels would leave a GPU idle or a block's shared memory has no room
// for 64.
constexpr int kUsualStates = 16;
constexpr int kOtherSplit = 8;

// Splits that shall be used in place of the rule's, for tests and measurements; 0: the rule's.
struct ForcedSplits {
  std::atomic<int> forward{0}, backward{0};
  std::atomic<bool> if_it_fits{false};  // else the rule's, not an error
  std::atomic<bool> general{false};     // no kernel for Vim alone
};
ForcedSplits& forced_splits();

// What one kernel would need for a problem.
struct Candidate {
  int split;
  bool vim;        // it is one for Vim alone
  int states;      // that it computes, given or not
  int64_t tokens;  // that it walks over, given or not
  int64_t blocks;
  int shared_bytes;
  int blocks_at_once;  // on a multiprocessor, by registers
  Cost cost;
};

// The candidate that should take least time, or null if none fits into the device's shared memory.
const Candidate* choose(const Candidate* candidates, int count, const Device& device);

// The kernel for a problem; `split` and `vim` tell it from the others. A block takes 64 / split
// channels.
template <class T>
Candidate forward_kernel(const ForwardProblem& problem, const Device& device);
template <class T>
Candidate backward_kernel(const BackwardProblem& problem, const Device& device);

template <class T>
void scan_forward(ForwardProblem problem, const Candidate& kernel, const Device& device);
template <class T>
void scan_backward(BackwardProblem problem, const Candidate& kernel, const Device& device);

}  // namespace mmvim::cuda
