// What device code and its emulation on a host have in common: number types, the special functions,
// asynchronous copies and atomic additions. Needs neither torch nor, outside nvcc, CUDA.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MMVIM_HD __host__ __device__ __forceinline__
#define MMVIM_UNROLL _Pragma("unroll")
#define MMVIM_UNROLL_BY(count) MMVIM_PRAGMA(unroll count)
#define MMVIM_PRAGMA(text) _Pragma(#text)
#else
#include <stdexcept>
#include <vector>
#define MMVIM_HD inline
#define MMVIM_UNROLL
#define MMVIM_UNROLL_BY(count)
#endif

namespace mmvim::cuda {

template <class Integer>
MMVIM_HD constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// What is read or written at once has to lie at a multiple of its size: elsewhere, a GPU stops.
MMVIM_HD void require_aligned(const void* address, int bytes) {
#ifndef __CUDACC__
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    throw std::logic_error("memory is read or written at once where its address does not allow it");
#else
  (void)address, (void)bytes;
#endif
}

// --- numbers ---

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

MMVIM_HD float from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}
MMVIM_HD uint32_t to_bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

MMVIM_HD float to_float(float x) { return x; }
MMVIM_HD float to_float(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
MMVIM_HD float to_float(Half x) {
  float value;
#ifdef __CUDA_ARCH__
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
#else
  _Float16 half;
  std::memcpy(&half, &x.bits, sizeof half);
  value = static_cast<float>(half);
#endif
  return value;
}

// Rounds to nearest, ties to even.
template <class T>
MMVIM_HD T from_float(float x);
template <>
MMVIM_HD float from_float<float>(float x) {
  return x;
}
template <>
MMVIM_HD BFloat16 from_float<BFloat16>(float x) {
  BFloat16 value;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
#else
  const uint32_t bits = to_bits(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  value.bits = static_cast<uint16_t>(is_nan ? 0x7fffu
                                            : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
  return value;
}
template <>
MMVIM_HD Half from_float<Half>(float x) {
  Half value;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
#else
  const _Float16 half = static_cast<_Float16>(x);
  std::memcpy(&value.bits, &half, sizeof half);
#endif
  return value;
}

// `Count` adjacent floats that shared memory is read and written by in as few accesses as can be.
template <int Count>
struct alignas(Count < 4 ? Count * 4 : 16) Floats {
  float at[Count];
};

template <int Count>
MMVIM_HD Floats<Count> load(const float* from) {
  require_aligned(from, alignof(Floats<Count>));
  return *reinterpret_cast<const Floats<Count>*>(from);
}
template <int Count>
MMVIM_HD void store(float* to, const Floats<Count>& floats) {
  require_aligned(to, alignof(Floats<Count>));
  *reinterpret_cast<Floats<Count>*>(to) = floats;
}

// --- functions ---

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

MMVIM_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

// 2^x by the special-function unit: 2 ulp, denormal results are zero.
MMVIM_HD float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// 2^x by multiply-adds: a relative error of 1.7e-7, on average below 1e-9 where x is near zero, and
// one at zero; zero below 2^-127, infinity from 2^128 on. The coefficients of 2^f, f within a half,
// were fitted to the least maximum of the relative error.
MMVIM_HD float exp2_exact(float x) {
  float clamped = x < -127.0f ? -127.0f : x;
  clamped = clamped > 128.0f ? 128.0f : clamped;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  const float rounded = clamped + kRound, f = clamped - (rounded - kRound);
  float p = multiply_add(f, 1.3264727e-3f, 9.6715130e-3f);
  p = multiply_add(p, f, 5.5507336e-2f);
  p = multiply_add(p, f, 2.4022242e-1f);
  p = multiply_add(p, f, 6.9314700e-1f);
  p = multiply_add(p, f, 1.0f);
  const float power = from_bits(to_bits(p) + (to_bits(rounded) << 23));
  return x == x ? power : x;  // the bits of a NaN may add up to a number
}

// How much of a state is left after a token. An error of slow decays adds up over thousands of
// tokens: of float32 the multiply-adds take it away, where MMVIM_EXACT_DECAYS is defined, for some
// ten instructions a state.
template <class T>
MMVIM_HD float decay(float x) {
#ifdef MMVIM_EXACT_DECAYS
  if constexpr (sizeof(T) == sizeof(float)) return exp2_exact(x);
#endif
  return exp2_fast(x);
}

// 1 / x by the special-function unit: 1 ulp.
MMVIM_HD float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

MMVIM_HD float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-kLog2e * x)); }
MMVIM_HD float silu(float x) { return x * sigmoid(x); }
MMVIM_HD float silu_slope(float x) {
  const float s = sigmoid(x);
  return multiply_add(x * s, 1.0f - s, s);
}

// log(1 + e^x) and its derivative. Beyond torch's threshold of 20 it is x itself: what is added to
// x there is below half a unit in its last place.
//
// With e = e^-|x|, log(1 + e) is computed as a product with e, so that steps of 1e-3 and far less
// keep all their digits. For float32, with s = e / (2 + e), it is 2 atanh(s): a series in s^2, 1/9
// at most, with a relative error of 5e-9. Half-precision inputs, which know a step to 1e-3 at best,
// get a shorter way: a polynomial with a relative error of 2.6e-7. The coefficients were fitted to
// least maximum error.
template <class T>
MMVIM_HD float softplus(float x, float* slope) {
  // e is zero from 128 on; a product that overflows would make NaN of what it lost, below.
  const float magnitude = sizeof(T) == 4 && fabsf(x) > 128.0f ? 128.0f : fabsf(x);
  const float positive = x > 0.0f ? x : 0.0f;
  const float high = -kLog2e * magnitude;
  float e = exp2_fast(high);
  if constexpr (sizeof(T) == 4) {
    // What the product lost: |x| is 7 for a step of 1e-3.
    e = multiply_add(e, kLn2 * multiply_add(-kLog2e, magnitude, -high), e);
  }
  const float larger = reciprocal(1.0f + e);
  *slope = x >= 0.0f ? larger : e * larger;
  if constexpr (sizeof(T) == 4) {
    const float s = e * reciprocal(2.0f + e), w = s * s;
    float atanh = multiply_add(w, 0.14012229f, 0.13999571f);
    atanh = multiply_add(w, atanh, 0.20010850f);
    atanh = multiply_add(w, atanh, 0.33333206f);
    return multiply_add(2.0f, multiply_add(w * s, atanh, s), positive);
  } else {
    float log1p = multiply_add(e, -0.0087789567f, 0.044986647f);
    log1p = multiply_add(e, log1p, -0.10902292f);
    log1p = multiply_add(e, log1p, 0.17847209f);
    log1p = multiply_add(e, log1p, -0.24536866f);
    log1p = multiply_add(e, log1p, 0.33284065f);
    log1p = multiply_add(e, log1p, -0.49998179f);
    return multiply_add(e * e, log1p, e) + positive;
  }
}

// --- memory ---

// A pointer into global memory, which a compiler cannot see of one that was kept in memory.
template <class T>
MMVIM_HD T* in_global(T* pointer) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// Adds adjacent floats to what other blocks add to as well: from compute capability 9 on in one
// operation, which costs the second-level cache no more than that of a single float.
template <int Count>
MMVIM_HD void atomic_add(float* to, const Floats<Count>& values) {
  require_aligned(to, alignof(Floats<Count>));
#ifdef __CUDA_ARCH__
  to = in_global(to);
  static_assert(Count == 1 || Count == 2 || Count == 4);
#if __CUDA_ARCH__ >= 900
  if constexpr (Count == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values.at[0]),
                 "f"(values.at[1]), "f"(values.at[2]), "f"(values.at[3])
                 : "memory");
  } else if constexpr (Count == 2) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(values.at[0]),
                 "f"(values.at[1])
                 : "memory");
  } else {
    atomicAdd(to, values.at[0]);
  }
#else
  MMVIM_UNROLL
  for (int i = 0; i < Count; ++i) atomicAdd(to + i, values.at[i]);
#endif
#else
  for (int i = 0; i < Count; ++i) to[i] += values.at[i];
#endif
}

#ifndef __CUDACC__
// Copies that an emulated thread has asked for and not yet waited for.
struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  bool given;
};
inline thread_local std::vector<PendingCopy>* pending_copies = nullptr;
#endif

// Starts to copy `Bytes` from global to shared memory, or zeros if not `given`. What arrives is
// there for the thread itself after wait_for_copies(), for others after the barrier that follows.
template <int Bytes>
MMVIM_HD void copy_async(void* to, const void* from, bool given) {
#if defined(__CUDA_ARCH__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int size = given ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                 "n"(Bytes), "r"(size)
                 : "memory");
  }
#elif !defined(__CUDACC__)
  require_aligned(to, Bytes);
  require_aligned(from, Bytes);  // whether given or not: a GPU may look at both
  pending_copies->push_back({to, from, Bytes, given});
#endif
}

MMVIM_HD void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#elif !defined(__CUDACC__)
  for (const PendingCopy& copy : *pending_copies) {
    if (copy.given) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  pending_copies->clear();
#endif
}

}  // namespace mmvim::cuda
