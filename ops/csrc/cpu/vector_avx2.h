// Eight floats in an AVX2 register.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mmvim {
namespace avx2 {

struct Vec {
  __m256 v;
};
constexpr int kLanes = 8;
// Of matrix products: 12 of 16 registers hold sums.
constexpr int kStrip = 4, kPanelVectors = 3;

// The first n lanes, for loads and stores at the edge of a tensor.
struct Lanes {
  __m256i mask;
  int count;
};
inline Lanes first_lanes(int64_t n) {
  const int count = n >= kLanes ? kLanes : static_cast<int>(n);
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index), count};
}

inline Vec set(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_load_ps(p)}; }
inline void store(float* p, Vec a) { _mm256_store_ps(p, a.v); }
// Masked accesses cost several of the others, and are needed at the edge alone.
inline bool all(Lanes lanes) { return __builtin_expect(lanes.count == kLanes, 1); }
inline Vec load(const float* p, Lanes lanes) {
  return {all(lanes) ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes.mask)};
}
inline void store(float* p, Vec a, Lanes lanes) {
  if (all(lanes)) {
    _mm256_storeu_ps(p, a.v);
  } else {
    _mm256_maskstore_ps(p, lanes.mask, a.v);
  }
}

inline Vec load_bf16(const uint16_t* p, Lanes lanes) {
  alignas(16) uint16_t part[kLanes] = {};
  const uint16_t* source = p;
  if (!all(lanes)) {  // there is no masked load of 16-bit elements
    for (int i = 0; i < lanes.count; ++i) part[i] = p[i];
    source = part;
  }
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16))};
}
// Rounds to nearest even; a NaN stays one.
inline void store_bf16(uint16_t* p, Vec a, Lanes lanes) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i rounded = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
  const __m128i low = _mm256_castsi256_si128(rounded), high = _mm256_extracti128_si256(rounded, 1);
  const __m128i narrow = _mm_packus_epi32(low, high);
  if (all(lanes)) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
  alignas(16) uint16_t part[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), narrow);
  for (int i = 0; i < lanes.count; ++i) p[i] = part[i];
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec negative_abs(Vec a) { return {_mm256_or_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline Vec where_negative(Vec x, Vec yes, Vec no) {
  const __m256 negative = _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ);
  return {_mm256_blendv_ps(no.v, yes.v, negative)};
}
// The transpose of a square of elements.
inline void transpose(Vec (&rows)[kLanes]) {
  // Halves of four columns each, then the halves themselves change places.
  __m256 quads[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    const __m256 b = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
    const __m256 c = _mm256_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
    const __m256 d = _mm256_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
    quads[i] = _mm256_shuffle_ps(a, c, 0x44);
    quads[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    quads[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    quads[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
// Sums of four vectors in parts: those of the i-th in lanes i and i + 4.
inline Vec four_sums(Vec a, Vec b, Vec c, Vec d) {
  return {_mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v))};
}
// p[i] += the i-th sum.
inline void add_parts(float* p, Vec parts) {
  const __m128 sums =
      _mm_add_ps(_mm256_castps256_ps128(parts.v), _mm256_extractf128_ps(parts.v, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
}

// The larger magnitude of two; NaN if either is. As integers magnitudes keep their order.
inline Vec max_magnitude(Vec a, Vec b) {
  const __m256i most = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.v), most),
                                               _mm256_and_si256(_mm256_castps_si256(b.v), most)))};
}
inline bool all_below(Vec a, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, _mm256_set1_ps(limit), _CMP_LT_OQ)) == 0xff;
}

// x * y within +-126 as an integer of eighths and the rest in [-1/16, 1/16], which is exact to the
// last bit of the product. The integer is kept in the low bits of a float. Three of these choose a
// power of two from a register, and those above, shifted to where exponents are, are added to its
// bits.
struct Split {
  Vec integer, rest;
};
constexpr int kPowersOfTwo = 8;
constexpr float kMagic = 1572864.0f;
inline Vec rest_of_eighths(Vec x, Vec y, Vec integer) {
  return {_mm256_fmsub_ps(x.v, y.v, (integer - set(kMagic)).v)};
}
inline Split split_product(Vec x, Vec y) {
  const Vec integer = fma(x, y, set(kMagic));
  return {integer, rest_of_eighths(x, y, integer)};
}
// 2^(i/8), and what is added to it: i where the shift brings it.
inline __m256i powers_of_two() {
  return _mm256_setr_epi32(0x3f800000, 0x3f8b95c2, 0x3f9837f0, 0x3fa5fed7, 0x3fb504f3, 0x3fc5672a,
                           0x3fd744fd, 0x3feac0c7);
}
inline Vec power(Split x) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i table = _mm256_sub_epi32(powers_of_two(), _mm256_slli_epi32(index, 20));
  const __m256i bits = _mm256_castps_si256(x.integer.v);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_permutevar8x32_epi32(table, bits),
                                               _mm256_slli_epi32(bits, 20)))};
}
inline Vec scale(Vec p, Split) { return p; }

// The same of any product, with the same bits where that lies within +-126. Powers below 2^-126 are
// taken for 0, from 2^128 on for infinity.
struct AnySplit {
  Vec integer, rest;
};
constexpr bool kBoundsPay = true;  // to know that products lie within +-126 saves instructions
inline AnySplit split_any(Vec x, Vec y) {
  Vec integer = max(set(kMagic - 127.0f), fma(x, y, set(kMagic)));
  integer = min(set(kMagic + 128.0f), integer);
  return {integer, max(set(-1.0f), rest_of_eighths(x, y, integer))};
}
inline Vec power(AnySplit x) {
  const __m256i bits = _mm256_castps_si256(x.integer.v);
  return {_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(powers_of_two(), bits))};
}
inline Vec scale(Vec p, AnySplit x) {
  const __m256i whole = _mm256_srli_epi32(_mm256_castps_si256(x.integer.v), 3);
  const __m256i one = _mm256_castps_si256(_mm256_set1_ps(1.0f));
  return p * Vec{_mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(whole, 23), one))};
}

}  // namespace avx2
}  // namespace mmvim
