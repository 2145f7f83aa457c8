// Sixteen floats in an AVX-512 register.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mmvim {
namespace avx512 {

struct Vec {
  __m512 v;
};
constexpr int kLanes = 16;
// Of matrix products: 24 of 32 registers hold sums.
constexpr int kStrip = 8, kPanelVectors = 3;

// The first n lanes, for loads and stores at the edge of a tensor.
struct Lanes {
  __mmask16 mask;
};
inline Lanes first_lanes(int64_t n) {
  return {static_cast<__mmask16>(n >= kLanes ? 0xffff : (1u << n) - 1)};
}

inline Vec set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_load_ps(p)}; }
inline void store(float* p, Vec a) { _mm512_store_ps(p, a.v); }
inline Vec load(const float* p, Lanes lanes) { return {_mm512_maskz_loadu_ps(lanes.mask, p)}; }
inline void store(float* p, Vec a, Lanes lanes) { _mm512_mask_storeu_ps(p, lanes.mask, a.v); }

inline Vec load_bf16(const uint16_t* p, Lanes lanes) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes.mask, p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Rounds to nearest even; a NaN stays one.
inline void store_bf16(uint16_t* p, Vec a, Lanes lanes) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_mask_storeu_epi16(p, lanes.mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec negative_abs(Vec a) { return {_mm512_or_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Vec where_negative(Vec x, Vec yes, Vec no) {
  const __mmask16 negative = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ);
  return {_mm512_mask_blend_ps(negative, no.v, yes.v)};
}
// The larger magnitude of two; NaN if either is. As integers magnitudes keep their order.
inline Vec max_magnitude(Vec a, Vec b) {
  const __m512i most = _mm512_set1_epi32(0x7fffffff);
  const __m512i x = _mm512_and_si512(_mm512_castps_si512(a.v), most);
  const __m512i y = _mm512_and_si512(_mm512_castps_si512(b.v), most);
  return {_mm512_castsi512_ps(_mm512_max_epi32(x, y))};
}
inline bool all_below(Vec a, float limit) {
  return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(limit), _CMP_LT_OQ) == 0xffff;
}

// The transpose of a square of elements.
inline void transpose(Vec (&rows)[kLanes]) {
  // Quarters of four columns each, then the quarters themselves change places.
  __m512 pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
    rows[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
// Sums of four vectors in parts: those of the i-th in lanes i, i + 4, i + 8 and i + 12.
inline Vec four_sums(Vec a, Vec b, Vec c, Vec d) {
  const auto interleave = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  };
  const __m512 ab = interleave(a.v, b.v), cd = interleave(c.v, d.v);
  return {_mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee))};
}
// p[i] += the i-th sum.
inline void add_parts(float* p, Vec parts) {
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(parts.v), _mm512_extractf32x8_ps(parts.v, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
}

// x * y within +-126 as an integer of sixteenths and the rest in [-1/32, 1/32]. The integer is kept
// in the low bits of a float. Four of these choose a power of two from a register, and those above,
// shifted to where exponents are, are added to its bits.
struct Split {
  Vec integer, rest;
};
constexpr int kPowersOfTwo = 16;
constexpr float kMagic = 786432.0f;
inline Vec rest_of_sixteenths(Vec product) { return {_mm512_reduce_ps(product.v, 0x48)}; }
inline Split split_product(Vec x, Vec y) {
  const Vec product = x * y;
  return {product + set(kMagic), rest_of_sixteenths(product)};
}
// 2^(i/16), and what is added to it: i where the shift brings it.
inline __m512i powers_of_two() {
  return _mm512_setr_epi32(0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3, 0x3f9837f0, 0x3f9ef532,
                           0x3fa5fed7, 0x3fad583f, 0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                           0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d);
}
inline Vec power(Split x) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i table = _mm512_sub_epi32(powers_of_two(), _mm512_slli_epi32(index, 19));
  const __m512i bits = _mm512_castps_si512(x.integer.v);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_permutexvar_epi32(bits, table),
                                               _mm512_slli_epi32(bits, 19)))};
}
inline Vec scale(Vec p, Split) { return p; }

// The same of any product, with the same bits where that lies within +-126. Powers far below the
// smallest number are 0, from 2^128 on infinity.
struct AnySplit {
  Vec integer, rest;
};
constexpr bool kBoundsPay = true;  // to know that products lie within +-126 saves instructions
inline AnySplit split_any(Vec x, Vec y) {
  const Vec product = min(set(130.0f), max(set(-200.0f), x * y));
  return {product + set(kMagic), rest_of_sixteenths(product)};
}
inline Vec power(AnySplit x) {
  const __m512i bits = _mm512_castps_si512(x.integer.v);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi32(bits, powers_of_two()))};
}
// The instruction rounds down to the exponent.
inline Vec scale(Vec p, AnySplit x) {
  return {_mm512_scalef_ps(p.v, (x.integer - set(kMagic)).v)};
}

}  // namespace avx512
}  // namespace mmvim
