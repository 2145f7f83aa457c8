// Runs the phases of an algorithm on the host, thread after thread.
//
// What a block of a GPU does is undefined where a phase reads what another thread writes in it; here
// such a phase gives other results when the order of the threads changes. Shared memory begins as
// NaN, copies arrive no sooner than they are waited for or, if that is chosen, before the next
// thread runs, and what lies behind a block's share of memory must not change. What this cannot
// see: how a GPU rounds its special functions, and whether blocks disturb each other.

#pragma once

#include <cstdlib>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "portable.h"

namespace mmvim::cuda {

enum class ThreadOrder : int { kForwards, kBackwards, kShuffled };
inline ThreadOrder thread_order = ThreadOrder::kForwards;
inline bool copies_arrive_early = false;
// What there is for kernels to be chosen for: an H200, unless a test says otherwise.
inline int emulated_multiprocessors = 132, emulated_shared_bytes = 227 * 1024;
// What a deterministic sum may take for parts of it at once.
inline int64_t emulated_parts_bytes = 64 << 20;

inline void arrive(const PendingCopy& copy) {
  if (copy.given) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

template <class Registers>
class HostThreads {
 public:
  explicit HostThreads(int count) : own_(count), copies_(count) {}

  template <class Phase>
  void operator()(const Phase& phase) {
    const int count = static_cast<int>(own_.size());
    // A number prime to the count visits every thread once.
    const int stride = thread_order == ThreadOrder::kShuffled ? 37 : 1;
    for (int i = 0; i < count; ++i) {
      const int at = thread_order == ThreadOrder::kBackwards ? count - 1 - i : i * stride % count;
      pending_copies = &copies_[at];
      phase(at, own_[at]);
      // And again when they are waited for, which changes nothing unless a thread did not wait.
      if (copies_arrive_early)
        for (const PendingCopy& copy : copies_[at]) arrive(copy);
    }
  }
  bool all_copies_arrived() const {
    for (const auto& each : copies_)
      if (!each.empty()) return false;
    return true;
  }

 private:
  std::vector<Registers> own_;
  std::vector<std::vector<PendingCopy>> copies_;
};

// Names of the algorithms that were emulated, as the compiler has them.
inline std::set<std::string> emulated_algorithms;

template <class Algorithm>
void emulate(const typename Algorithm::Params& params, int64_t block) {
  emulated_algorithms.insert(typeid(Algorithm).name());
  constexpr int kGuard = 4096;
  const int bytes = Algorithm::shared_bytes(params);
  const size_t size = (bytes + kGuard + 63) / 64 * 64;
  std::unique_ptr<char, decltype(&std::free)> shared(
      static_cast<char*>(std::aligned_alloc(64, size)), &std::free);
  std::memset(shared.get(), 0xff, size);
  HostThreads<typename Algorithm::Registers> each(Algorithm::threads(params));
  Algorithm::run(each, params, block, shared.get());
  for (size_t i = bytes; i < size; ++i)
    if (shared.get()[i] != static_cast<char>(0xff))
      throw std::logic_error("a block wrote beyond its shared memory");
  if (!each.all_copies_arrived()) throw std::logic_error("a copy was not waited for");
}

}  // namespace mmvim::cuda
