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
const Candidate* choose(const Candidate* candidates, int count, const Device& device) {
  const Candidate* best = nullptr;
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
        (each.cost.state * each.states + each.cost.channel) / each.split + each.cost.token;
    const double time = (blocks + kWaiting * rounds) * instructions * each.tokens;
    if (!best || time < least) {
      best = &each;
      least = time;
    }
  }
  return best;
}

}  // namespace mmvim::cuda
