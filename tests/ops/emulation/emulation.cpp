// What tests choose of an emulation and ask of the kernels, and an algorithm with faults to be found;
// by ctypes.

#include <string>
#include <vector>

#include "emulation.h"
#include "scan_kernels.inc"

#define MMVIM_EXPORT extern "C" __attribute__((visibility("default")))

namespace mmvim::cuda {
namespace {

enum class Fault : int { kNone, kNoBarrier, kNoWait, kTooFar };

// Every thread gets what its neighbour copied to shared memory.
struct Neighbours {
  struct Params {
    const float* in;
    float* out;
    Fault fault;
  };
  struct Registers {};
  static constexpr int kThreads = 64;

  static int threads(const Params&) { return kThreads; }
  static int shared_bytes(const Params&) { return kThreads * 4; }

  template <class EachThread>
  static void run(EachThread& each, const Params& p, int64_t, char* shared) {
    float* floats = reinterpret_cast<float*>(shared);
    const auto bring = [&](int tid) {
      copy_async<4>(floats + tid, p.in + tid, true);
      if (p.fault != Fault::kNoWait) wait_for_copies();
      if (p.fault == Fault::kTooFar) floats[tid + 1] = 0.0f;
    };
    const auto take = [&](int tid) { p.out[tid] = floats[(tid + 1) % kThreads]; };
    if (p.fault == Fault::kNoBarrier) {
      each([&](int tid, Registers&) {
        bring(tid);
        take(tid);
      });
    } else {
      each([&](int tid, Registers&) { bring(tid); });
      each([&](int tid, Registers&) { take(tid); });
    }
  }
};

// Shared memory of a block that scans both directions of a long sequence and saves a state every 128
// tokens; 0 where no kernel has this split.
template <class Kernels, class Problem>
int shared_bytes(int split, int states, int rank, bool vim) {
  Problem p;
  p.directions = 2;
  p.gated = true;
  p.states = states;
  p.rank = rank;
  p.chunk = 128;
  p.length = 2 * p.chunk;
  int bytes = 0;
  Kernels::each(states, [&](auto kernel) {
    using K = decltype(kernel);
    cut<typename K::TheShape>(p);
    if (K::kSplit == split && K::kVim == vim) bytes = K::shared_bytes(p);
  });
  return bytes;
}

}  // namespace
}  // namespace mmvim::cuda

MMVIM_EXPORT void mmvim_emulation_use_order(int order, bool copies_arrive_early) {
  mmvim::cuda::thread_order = static_cast<mmvim::cuda::ThreadOrder>(order);
  mmvim::cuda::copies_arrive_early = copies_arrive_early;
}

MMVIM_EXPORT void mmvim_emulation_use_device(int multiprocessors, int shared_bytes,
                                             int64_t parts_bytes) {
  mmvim::cuda::emulated_multiprocessors = multiprocessors;
  mmvim::cuda::emulated_shared_bytes = shared_bytes;
  mmvim::cuda::emulated_parts_bytes = parts_bytes;
}

// Emulates 64 neighbours with a fault or without; what the emulation says of it, or null.
MMVIM_EXPORT const char* mmvim_emulation_neighbours(const float* in, float* out, int fault) {
  using namespace mmvim::cuda;
  static thread_local std::string complaint;
  try {
    emulate<Neighbours>({in, out, static_cast<Fault>(fault)}, 0);
    return nullptr;
  } catch (const std::logic_error& error) {
    complaint = error.what();
    return complaint.c_str();
  }
}

// The rule for kernels of these splits, which would need so much shared memory a block and of which
// two fit on a multiprocessor.
MMVIM_EXPORT int mmvim_emulation_choose_split(bool backward, const int* splits,
                                              const int* shared_bytes, int count, int64_t channels,
                                              int states, int multiprocessors, int shared_limit) {
  using namespace mmvim::cuda;
  using AShape = Shape<BFloat16, kUsualStates, 8, false>;
  const Cost cost = backward ? ScanBackward<AShape>::kCost : ScanForward<AShape>::kCost;
  std::vector<Candidate> candidates;
  for (int i = 0; i < count; ++i) {
    const int64_t blocks = ceil_div<int64_t>(channels * splits[i], 64);
    candidates.push_back({splits[i], false, states, 1, blocks, shared_bytes[i], 2, cost});
  }
  Device device;
  device.multiprocessors = multiprocessors;
  device.shared_bytes = shared_limit;
  const Candidate* chosen = choose(candidates.data(), count, device);
  return chosen ? chosen->split : 0;
}

MMVIM_EXPORT void mmvim_emulation_exp2_exact(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = mmvim::cuda::exp2_exact(x[i]);
}

// How many kernels of a pass were emulated since the last call, those for Vim alone or the others.
MMVIM_EXPORT int mmvim_emulation_ran(const char* pass, bool vim) {
  using namespace mmvim::cuda;
  int count = 0;
  for (auto it = emulated_algorithms.begin(); it != emulated_algorithms.end();) {
    const bool is_for_vim = it->find("ELb1EE") != std::string::npos;  // the last of its Shape
    const bool meant = it->find(pass) != std::string::npos && is_for_vim == vim;
    count += meant;
    it = meant ? emulated_algorithms.erase(it) : std::next(it);
  }
  return count;
}

// Which kernel a block of a Vim of such sizes takes in half precision: its split, negative where it
// is one for Vim alone.
MMVIM_EXPORT int mmvim_emulation_vim_kernel(bool backward, int64_t batch, int64_t length,
                                            int channels, int rank) {
  using namespace mmvim::cuda;
  BackwardProblem p;
  p.batch = batch;
  p.length = length;
  p.chunk = 128;
  p.channels = channels;
  p.rank = rank;
  p.states = kUsualStates;
  p.directions = 2;
  p.gated = p.softplus = true;
  char some;
  p.grads[0].z.data = &some;
  p.grads[0].out.alignment = 16;
  for (Direction& scan : p.scans)
    for (Rows* rows : {&scan.u, &scan.z, &scan.dt, &scan.B, &scan.C}) rows->alignment = 16;
  ForwardProblem forward;
  static_cast<Problem&>(forward) = p;
  Device device;
  device.multiprocessors = emulated_multiprocessors;
  device.shared_bytes = emulated_shared_bytes;
  const Candidate chosen = backward ? Backward<BFloat16>::choose(p, 0, device)
                                    : Forward<BFloat16>::choose(forward, 0, device);
  return chosen.vim ? -chosen.split : chosen.split;
}

// Of the kernel for Vim alone, or of the general one.
MMVIM_EXPORT int mmvim_emulation_shared_bytes(bool backward, int number_bytes, int split,
                                              int states, int rank, bool vim) {
  using namespace mmvim::cuda;
  const auto of = [&](auto number) {
    using T = decltype(number);
    return backward ? shared_bytes<Backward<T>, BackwardProblem>(split, states, rank, vim)
                    : shared_bytes<Forward<T>, ForwardProblem>(split, states, rank, vim);
  };
  return number_bytes == 4 ? of(float{}) : of(BFloat16{});
}
