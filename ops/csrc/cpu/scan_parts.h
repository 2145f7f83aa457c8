// What operators that scan share: blocks of channels, packed parameters.

#pragma once

#include <algorithm>

#include "tensors.h"

namespace mmvim {

// How a batch falls into blocks: sequences x groups x blocks of a group's channels.
struct Blocks {
  int64_t batch, groups, channels;  // of a group
  int64_t size;
  int64_t per_group;

  // As few blocks of at most `largest` channels as there can be, of equal sizes in whole vectors.
  Blocks(int64_t batch, int64_t groups, int64_t channels, int64_t largest)
      : batch(batch), groups(groups), channels(channels),
        size(padded(ceil_div(channels, ceil_div(channels, largest)))),
        per_group(ceil_div(channels, size)) {}

  int64_t count() const { return batch * groups * per_group; }

  struct Item {
    int64_t b, group, block, first, count;  // `first` counts from the first channel of all groups
  };
  Item item(int64_t index) const {
    const int64_t block = index % per_group, rest = index / per_group;
    const int64_t group = rest % groups, start = block * size;
    return {rest / groups, group, block, group * channels + start,
            std::min(size, channels - start)};
  }
};

// Wide blocks read memory in long runs and touch few pages; narrow ones keep threads busy.
// Forwards nothing is summed over channels, so blocks may shrink until all threads have one.
inline Blocks forward_blocks(int64_t batch, int64_t groups, int64_t channels) {
  const int64_t threads = torch::stable::get_num_threads();
  for (int64_t size = 384;; size -= size > 96 ? 96 : 32) {
    const Blocks blocks(batch, groups, channels, size);
    if (size <= 32 || blocks.count() >= threads) return blocks;
  }
}

// The parameters of one direction, packed.
struct Parameters {
  Floats decay, dt_weight, D, bias;

  Parameters(const Tensor& A, const OptionalTensor& dt_w, const OptionalTensor& D_,
             const OptionalTensor& bias_)
      : decay(pack(A, A.size(0), 1.44269504088896341f)),
        dt_weight(pack(dt_w, A.size(0))),
        D(pack(D_, A.size(0))),
        bias(pack(bias_, A.size(0))) {}

  void give(Scan& scan, int64_t first, int64_t ld) const {
    scan.decay = decay.data() + first;
    scan.dt_weight = dt_weight.data() + first;
    scan.D = D.data() + first;
    scan.bias = bias.data() + first;
    scan.ld = ld;
  }
};

}  // namespace mmvim
