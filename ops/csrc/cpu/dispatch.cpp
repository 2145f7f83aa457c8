// Which kernels run on this machine, and the C functions by which Python chooses among them.

#include <cstring>

#include "kernels.h"

namespace mmvim {
namespace {

#if defined(__x86_64__)
// The processor has the instructions, and the operating system saves the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

// Best first; the plain ones run everywhere.
struct Usable {
  const Kernels* kernels[3];
  int count = 0;
  char names[64] = "";

  Usable() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx512()) add(kAvx512Kernels);
    if (has_avx2()) add(kAvx2Kernels);
#elif defined(__aarch64__)
    add(kNeonKernels);
#endif
    add(kPlainKernels);
  }
  void add(const Kernels& each) {
    if (count > 0) std::strcat(names, ",");
    std::strcat(names, each.name);
    kernels[count++] = &each;
  }
};

const Usable& usable() {
  static const Usable instance;
  return instance;
}

const Kernels*& chosen() {
  static const Kernels* instance = usable().kernels[0];
  return instance;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

}  // namespace mmvim

#define MMVIM_EXPORT extern "C" __attribute__((visibility("default")))

MMVIM_EXPORT const char* mmvim_ops_isas() { return mmvim::usable().names; }

MMVIM_EXPORT const char* mmvim_ops_isa() { return mmvim::kernels().name; }

// 0, or 1 where no such kernels can run here.
MMVIM_EXPORT int mmvim_ops_use_isa(const char* name) {
  for (int i = 0; i < mmvim::usable().count; ++i) {
    if (std::strcmp(name, mmvim::usable().kernels[i]->name) != 0) continue;
    mmvim::chosen() = mmvim::usable().kernels[i];
    return 0;
  }
  return 1;
}

MMVIM_EXPORT void mmvim_ops_exp_many(float* data, int64_t count, int64_t repeats) {
  mmvim::kernels().exp_many(data, count, repeats);
}
