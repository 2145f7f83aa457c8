// How the threads of a scan are shared out.

#include "scan_kernels.h"

namespace mmvim::cuda {
namespace {

// A scheduler that has w warps works w / (w + kWaiting) of the time.
constexpr double kWaiting = 0.5;
// What a block takes of a multiprocessor's shared memory beside its own.
constexpr int kReserved = 1024;

}  // namespace

ForcedSplits& forced_splits() {
  static ForcedSplits instance;
  return instance;
}

// The multiprocessor with most blocks decides, each of which has a warp for each of its schedulers;
// those that do not fit at once come in rounds. Many threads a channel keep a GPU busy that few
// channels would leave idle; few threads a channel do less work in all.
int choose_split(const Candidate* candidates, int count, const Cost& cost, const Device& device) {
  int best = 0;
  double least = 0.0;
  for (int i = 0; i < count; ++i) {
    const Candidate& each = candidates[i];
    if (each.shared_bytes > device.shared_bytes) continue;
    const int64_t processors = device.multiprocessors > 0 ? device.multiprocessors : 1;
    const int64_t fitting = (device.shared_bytes + kReserved) / (each.shared_bytes + kReserved);
    const int64_t blocks = ceil_div(each.blocks, processors);
    const int64_t rounds =
        ceil_div(blocks, fitting < each.blocks_at_once ? fitting : int64_t{each.blocks_at_once});
    const double instructions =
        (cost.state * each.states + cost.channel) / each.split + cost.token;
    const double time = (blocks + kWaiting * rounds) * instructions;
    if (best == 0 || time < least) {
      best = each.split;
      least = time;
    }
  }
  return best;
}

}  // namespace mmvim::cuda
