// What tests choose of an emulation, and an algorithm with faults to be found; by ctypes.

#include <string>

#include "emulation.h"

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

}  // namespace
}  // namespace mmvim::cuda

MMVIM_EXPORT void mmvim_emulation_use_order(int order, bool copies_arrive_early) {
  mmvim::cuda::thread_order = static_cast<mmvim::cuda::ThreadOrder>(order);
  mmvim::cuda::copies_arrive_early = copies_arrive_early;
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
