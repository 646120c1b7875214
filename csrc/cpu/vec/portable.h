// Four floats in the compiler's own vector type: SSE on any x86-64, NEON on 64-bit Arm, plain code elsewhere.
#pragma once
#include <stdint.h>

namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int64_t kWidth = 4;
  static constexpr int kPanelVectors = 2;
  static constexpr int kMaxPanelVectors = 2;
  static constexpr bool kScalesByAnyPower = false;
  Float4 v;

  static Vec zero() { return set1(0.0f); }
  static Vec set1(float x) { return {Float4{x, x, x, x}}; }
  static Vec load(const float* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  void store(float* p) const { __builtin_memcpy(p, &v, sizeof(v)); }
  static Vec load_first(const float* p, int64_t n) {
    if (n == kWidth) return load(p);
    Vec r = zero();
    for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  void store_first(float* p, int64_t n) const {
    if (n == kWidth) return store(p);
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  // a / b for b >= 1; quicker, and less exact, where there is an instruction for it.
  static Vec ratio(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  // Comparisons with NaN are false, so a NaN in `x` survives.
  static Vec at_least(Vec bound, Vec x) { return {x.v < bound.v ? bound.v : x.v}; }
  static Vec at_most(Vec bound, Vec x) { return {x.v > bound.v ? bound.v : x.v}; }
  // NaN in either operand gives NaN, as torch's pooling does.
  static Vec max_nan(Vec best, Vec x) {
    const Float4 larger = x.v > best.v ? x.v : best.v;
    return {x.v != x.v ? x.v : larger};
  }
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, for |x| < 2^22.
  static Vec round(Vec x) {
    const Float4 magic = set1(12582912.0f).v;
    return {(x.v + magic) - magic};
  }
  // x * 2^n for a whole number n with |n| < 127.
  static Vec scale_by_power(Vec x, Vec n) {
    Int4 bits;
    for (int i = 0; i < 4; ++i) bits[i] = n.v[i] == n.v[i] ? (static_cast<int32_t>(n.v[i]) + 127) << 23 : 0;
    Float4 power;
    __builtin_memcpy(&power, &bits, sizeof(power));
    return {x.v * power};
  }
  // 2^(k - 127), where the last nine bits of x hold 0 < k < 255.
  static Vec power_in_last_bits(Vec x) {
    uint32_t bits[kWidth];
    __builtin_memcpy(bits, &x.v, sizeof(bits));
    for (uint32_t& b : bits) b <<= 23;
    __builtin_memcpy(&x.v, bits, sizeof(bits));
    return x;
  }
  static Vec sqrt(Vec x) {
    for (int i = 0; i < 4; ++i) x.v[i] = __builtin_sqrtf(x.v[i]);
    return x;
  }
  // g where y is positive or NaN, else 0: ReLU's gradient from its output.
  static Vec where_positive(Vec y, Vec g) { return {y.v <= zero().v ? zero().v : g.v}; }
  // a where x beats `best`, being larger or NaN, else b.
  static Vec where_beats(Vec x, Vec best, Vec a, Vec b) {
    return {(x.v > best.v) | (x.v != x.v) ? a.v : b.v};
  }
  // g where a equals b, else 0.
  static Vec where_equal(Vec a, Vec b, Vec g) { return {a.v == b.v ? g.v : zero().v}; }
  // a0 b0 a1 b1 ...
  static void interleave(Vec a, Vec b, Vec& low, Vec& high) {
    low = {Float4{a.v[0], b.v[0], a.v[1], b.v[1]}};
    high = {Float4{a.v[2], b.v[2], a.v[3], b.v[3]}};
  }
  // Lane k of each `group` lanes, in all of them.
  static Vec spread(Vec x, int group, int k) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.v[i] = x.v[i / group * group + k];
    return r;
  }
  // Rows become columns.
  static void transpose(Vec* v) {
    float rows[4][4];
    for (int i = 0; i < 4; ++i) v[i].store(rows[i]);
    for (int i = 0; i < 4; ++i) v[i].v = Float4{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
  }
};

// Whether depthwise convolutions ask for what they write; not measured here.
constexpr bool kFetchesOutput = false;

// Register block: accumulators, weights and one broadcast fit 16 registers.
constexpr int kTilePixels[Vec::kMaxPanelVectors] = {8, 6};
constexpr bool kAddressedProducts = false;

// The same for Winograd's products.
constexpr int kWinogradVectors = 2;
constexpr int kWinogradRows[kWinogradVectors] = {8, 6};
constexpr int64_t kWinogradChannels = int64_t{1} << 40;  // at a time: all

}  // namespace

#include "cpu/vec/products.h"
