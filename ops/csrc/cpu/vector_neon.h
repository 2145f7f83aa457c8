// Eight floats in two registers of ARM's NEON, of which every 64-bit processor has 32.

#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace mmvim {
namespace neon {

struct Vec {
  float32x4_t low, high;
};
constexpr int kLanes = 8;
// Of matrix products: 16 of 32 registers hold sums.
constexpr int kStrip = 4, kPanelVectors = 2;

// The first n lanes, for loads and stores at the edge of a tensor.
struct Lanes {
  int count;
};
inline Lanes first_lanes(int64_t n) { return {n >= kLanes ? kLanes : static_cast<int>(n)}; }
inline bool all(Lanes lanes) { return __builtin_expect(lanes.count == kLanes, 1); }

inline Vec set(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, Vec a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}
// There are no masked accesses: at the edge elements go through an array.
inline Vec load(const float* p, Lanes lanes) {
  if (all(lanes)) return load(p);
  float part[kLanes] = {};
  for (int i = 0; i < lanes.count; ++i) part[i] = p[i];
  return load(part);
}
inline void store(float* p, Vec a, Lanes lanes) {
  if (all(lanes)) return store(p, a);
  float part[kLanes];
  store(part, a);
  for (int i = 0; i < lanes.count; ++i) p[i] = part[i];
}

inline Vec load_bf16(const uint16_t* p, Lanes lanes) {
  uint16_t part[kLanes] = {};
  for (int i = 0; !all(lanes) && i < lanes.count; ++i) part[i] = p[i];
  const uint16x8_t narrow = vld1q_u16(all(lanes) ? p : part);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(narrow), 16)),
          vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(narrow), 16))};
}
// Rounds to nearest even; a NaN stays one.
inline uint16x4_t to_bf16(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), up, quiet), 16);
}
inline void store_bf16(uint16_t* p, Vec a, Lanes lanes) {
  const uint16x8_t narrow = vcombine_u16(to_bf16(a.low), to_bf16(a.high));
  if (all(lanes)) return vst1q_u16(p, narrow);
  uint16_t part[kLanes];
  vst1q_u16(part, narrow);
  for (int i = 0; i < lanes.count; ++i) p[i] = part[i];
}

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline Vec fma(Vec a, Vec b, Vec c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
// NaN where either is; the other units give b, and no caller has a NaN for a.
inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
inline Vec min(Vec a, Vec b) { return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
inline Vec negative_abs(Vec a) {
  return {vnegq_f32(vabsq_f32(a.low)), vnegq_f32(vabsq_f32(a.high))};
}
inline Vec where_negative(Vec x, Vec yes, Vec no) {
  return {vbslq_f32(vcltzq_f32(x.low), yes.low, no.low),
          vbslq_f32(vcltzq_f32(x.high), yes.high, no.high)};
}
// The transpose of a square of elements: of its quarters, two of which change places.
inline void transpose(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
  const float32x4x2_t ab = vtrnq_f32(a, b), cd = vtrnq_f32(c, d);
  a = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
  b = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
  c = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
  d = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}
inline void transpose(Vec (&rows)[kLanes]) {
  for (int i = 0; i < 8; i += 4) {
    transpose(rows[i].low, rows[i + 1].low, rows[i + 2].low, rows[i + 3].low);
    transpose(rows[i].high, rows[i + 1].high, rows[i + 2].high, rows[i + 3].high);
  }
  for (int i = 0; i < 4; ++i) {
    const float32x4_t high = rows[i].high;
    rows[i].high = rows[i + 4].low;
    rows[i + 4].low = high;
  }
}

inline float sum(Vec a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
// Sums of four vectors in parts: those of the i-th in lanes i and i + 4.
inline Vec four_sums(Vec a, Vec b, Vec c, Vec d) {
  return {vpaddq_f32(vpaddq_f32(a.low, b.low), vpaddq_f32(c.low, d.low)),
          vpaddq_f32(vpaddq_f32(a.high, b.high), vpaddq_f32(c.high, d.high))};
}
// p[i] += the i-th sum.
inline void add_parts(float* p, Vec parts) {
  vst1q_f32(p, vaddq_f32(vld1q_f32(p), vaddq_f32(parts.low, parts.high)));
}

// The larger magnitude of two; NaN if either is. As integers magnitudes keep their order.
inline Vec max_magnitude(Vec a, Vec b) {
  const auto larger = [](float32x4_t x, float32x4_t y) {
    return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(vabsq_f32(x)),
                                           vreinterpretq_u32_f32(vabsq_f32(y))));
  };
  return {larger(a.low, b.low), larger(a.high, b.high)};
}
inline bool all_below(Vec a, float limit) {
  const float32x4_t most = vdupq_n_f32(limit);
  return vminvq_u32(vandq_u32(vcltq_f32(a.low, most), vcltq_f32(a.high, most))) != 0;
}

// x * y within +-126 as an integer and the rest in [-1/2, 1/2], which is exact to the last bit of
// the product. The integer is kept in the low bits of a float, so that scale() can shift it to
// where exponents are and add it to that of p, which lies near 1.
struct Split {
  Vec integer, rest;
};
constexpr int kPowersOfTwo = 1;
constexpr float kMagic = 12582912.0f;
inline Split split_product(Vec x, Vec y) {
  const Vec shifted = fma(x, y, set(kMagic));
  return {shifted, fma(x, y, set(kMagic) - shifted)};
}
inline uint32x4_t exponent(float32x4_t integer) {
  return vshlq_n_u32(vreinterpretq_u32_f32(integer), 23);
}
inline Vec scale(Vec p, Split x) {
  const auto add = [](float32x4_t a, float32x4_t integer) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), exponent(integer)));
  };
  return {add(p.low, x.integer.low), add(p.high, x.integer.high)};
}

// The same of any product, with the same bits where that lies within +-126. Powers below 2^-126 are
// taken for 0, from 2^128 on for infinity.
struct AnySplit {
  Vec integer, rest;
};
constexpr bool kBoundsPay = true;  // to know that products lie within +-126 saves instructions
inline AnySplit split_any(Vec x, Vec y) {
  Vec shifted = max(set(kMagic - 127.0f), fma(x, y, set(kMagic)));
  shifted = min(set(kMagic + 128.0f), shifted);
  return {shifted, max(set(-1.0f), fma(x, y, set(kMagic) - shifted))};
}
inline Vec scale(Vec p, AnySplit x) { return p * scale(set(1.0f), Split{x.integer, x.rest}); }

}  // namespace neon
}  // namespace mmvim
