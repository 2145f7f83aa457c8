// What the backward pass of a scan is given, and where its gradients go.

#pragma once

#include "scan.h"

namespace mmvim::cuda {

// Where gradients of (B, L, groups, columns) are summed up. Part i begins i * part floats further.
struct RowSums {
  float* data = nullptr;
  int64_t sequence = 0, token = 0, group = 0, part = 0;
  int64_t tile = 0;  // from a tile to the next

  bool in_fours() const {
    return ((reinterpret_cast<intptr_t>(data) / 4) | sequence | token | group | part) % 4 == 0;
  }
};

struct ScanGrads {
  Rows out;  // given, the same for both scans
  Rows z;    // the same for both scans; no data: not wanted
  Rows u;
  Rows delta;  // not given where rank > 0, or not wanted
  RowSums dt, B, C;
  // (B, states + rank + 2, groups * channels): those of A, dt_weight, D and bias, in this order.
  float* parameters = nullptr;
};

struct BackwardProblem : Problem {
  ScanGrads grads[2];
  const float* grad_last_state = nullptr;  // (B, groups * channels, states) of the only scan
  bool wide_grad = false;                  // grads.out is float, whatever the inputs are
  bool atomic = false;                     // all blocks of a group add to part 0
  bool whole_sums = false;  // sums of dt, B and C are rows of fours, each at a multiple of 16 bytes
  // The chunks that a launch walks over, from the last to the first. Launches that share a sequence
  // out hand `carried` on, (2, B, groups * directions, states, channels), as checkpoints are laid
  // out: each of a thread's states has its gradient, and what that is yet to be multiplied by.
  int first_chunk = 0, end_chunk = INT32_MAX;
  float* carried = nullptr;
  bool goes_on = false;  // from what a launch over later chunks carried

  MMVIM_HD int end_tile() const {
    const int64_t end = static_cast<int64_t>(end_chunk) * grids_a_chunk;
    return end < tiles ? static_cast<int>(end) : tiles;
  }
};

inline bool has_whole_sums(const BackwardProblem& p) {
  bool whole = p.rank % 4 == 0;
  for (int d = 0; d < p.directions; ++d) {
    const ScanGrads& grads = p.grads[d];
    for (const RowSums* sums : {&grads.dt, &grads.B, &grads.C})
      if (sums->data) whole = whole && sums->in_fours();
  }
  return whole;
}

}  // namespace mmvim::cuda
