// Eight floats in an array, for any processor; compilers make vectors of the loops where they can.

#pragma once

#include <cstdint>
#include <cstring>

namespace mmvim {
namespace plain {

constexpr int kLanes = 8;
constexpr int kStrip = 4, kPanelVectors = 1;  // of matrix products
struct Vec {
  float v[kLanes];
};

// The first n lanes, for loads and stores at the edge of a tensor.
struct Lanes {
  int count;
};
inline Lanes first_lanes(int64_t n) { return {n >= kLanes ? kLanes : static_cast<int>(n)}; }

template <class F>
inline Vec each(F f) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline Vec set(float x) {
  return each([=](int) { return x; });
}
inline Vec load(const float* p) {
  return each([=](int i) { return p[i]; });
}
inline void store(float* p, const Vec& a) { std::memcpy(p, a.v, sizeof a.v); }
inline Vec load(const float* p, Lanes lanes) {
  return each([=](int i) { return i < lanes.count ? p[i] : 0.0f; });
}
inline void store(float* p, const Vec& a, Lanes lanes) {
  for (int i = 0; i < lanes.count; ++i) p[i] = a.v[i];
}

inline Vec load_bf16(const uint16_t* p, Lanes lanes) {
  return each([=](int i) {
    return i < lanes.count ? from_bits(static_cast<uint32_t>(p[i]) << 16) : 0.0f;
  });
}
// Rounds to nearest even; a NaN stays one.
inline void store_bf16(uint16_t* p, const Vec& a, Lanes lanes) {
  for (int i = 0; i < lanes.count; ++i) {
    const uint32_t bits = bits_of(a.v[i]);
    const bool nan = a.v[i] != a.v[i];
    const uint32_t rounded = nan ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
    p[i] = static_cast<uint16_t>(rounded >> 16);
  }
}

inline Vec operator+(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec operator-(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Vec operator*(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec operator/(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
// Rounded twice: a call of fmaf() would cost more than it gains where there is no instruction.
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// b where either is NaN.
inline Vec max(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec negative_abs(const Vec& a) {
  return each([&](int i) { return from_bits(bits_of(a.v[i]) | 0x80000000u); });
}
inline Vec where_negative(const Vec& x, const Vec& yes, const Vec& no) {
  return each([&](int i) { return x.v[i] < 0.0f ? yes.v[i] : no.v[i]; });
}
// The transpose of a square of elements.
inline void transpose(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float other = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = other;
    }
  }
}

inline float sum(const Vec& a) {
  float s = 0.0f;
  for (int i = 0; i < kLanes; ++i) s += a.v[i];
  return s;
}
// Sums of four vectors in parts: those of the i-th in lanes i and i + 4.
inline Vec four_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d) {
  const Vec* vectors[] = {&a, &b, &c, &d};
  return each([&](int i) {
    const float* v = vectors[i % 4]->v + i / 4 * 4;
    return (v[0] + v[1]) + (v[2] + v[3]);
  });
}
// p[i] += the i-th sum.
inline void add_parts(float* p, const Vec& parts) {
  for (int i = 0; i < 4; ++i) p[i] += parts.v[i] + parts.v[i + 4];
}

// The larger magnitude of two; NaN if either is. As integers magnitudes keep their order.
inline Vec max_magnitude(const Vec& a, const Vec& b) {
  return each([&](int i) {
    const uint32_t x = bits_of(a.v[i]) & 0x7fffffff, y = bits_of(b.v[i]) & 0x7fffffff;
    return from_bits(x > y ? x : y);
  });
}
inline bool all_below(const Vec& a, float limit) {
  bool all = true;
  for (int i = 0; i < kLanes; ++i) all = all && a.v[i] < limit;
  return all;
}

// x * y within +-126 as an integer and the rest in [-1/2, 1/2]. The integer is kept in the low bits
// of a float, so that scale() can shift it to where exponents are and add it to that of p, which
// lies near 1.
struct Split {
  Vec integer, rest;
};
constexpr int kPowersOfTwo = 1;
constexpr float kMagic = 12582912.0f;
inline Split split_product(const Vec& x, const Vec& y) {
  const Vec product = x * y, shifted = product + set(kMagic);
  return {shifted, product - (shifted - set(kMagic))};
}
inline Vec scale(const Vec& p, const Split& x) {
  return each([&](int i) { return from_bits(bits_of(p.v[i]) + (bits_of(x.integer.v[i]) << 23)); });
}

// The same of any product, with the same bits where that lies within +-126. Powers below 2^-126 are
// taken for 0, from 2^128 on for infinity.
struct AnySplit {
  Vec integer, rest;
};
constexpr bool kBoundsPay = true;  // to know that products lie within +-126 saves instructions
inline AnySplit split_any(const Vec& x, const Vec& y) {
  const Vec product = x * y, shifted = max(set(kMagic - 127.0f), product + set(kMagic));
  const Vec integer = min(set(kMagic + 128.0f), shifted);
  return {integer, max(set(-1.0f), product - (integer - set(kMagic)))};
}
inline Vec scale(const Vec& p, const AnySplit& x) {
  return p * each([&](int i) { return from_bits((bits_of(x.integer.v[i]) << 23) + 0x3f800000u); });
}

}  // namespace plain
}  // namespace mmvim
