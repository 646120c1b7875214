// Sixteen bfloat16 values as a vector of floats, and back.
#pragma once
#include "cpu/vec/avx512.h"

namespace {

struct Bf16 {
  // Has power_of_two and reciprocal, near enough for what is rounded to bfloat16 next.
  static constexpr bool kCoarse = true;
  // Relative error 7.5e-5, as reciprocal's: minimax polynomial for the fraction. Of infinity the fraction
  // is 0.
  static Vec power_of_two(Vec x) {
    const Vec f = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    Vec p = Vec::fma(Vec::set1(7.802455e-2f), f, Vec::set1(2.2606719e-1f));
    p = Vec::fma(p, f, Vec::set1(6.958335e-1f));
    p = Vec::fma(p, f, Vec::set1(9.9992526e-1f));
    return {_mm512_scalef_ps(p.v, x.v)};
  }
  // Relative error 2^-14.
  static Vec reciprocal(Vec x) { return {_mm512_rcp14_ps(x.v)}; }
  static Vec load(const uint16_t* p) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load_first(const uint16_t* p, int64_t n) {
    return widened(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void store(Vec x, uint16_t* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(x)); }
  static void store_first(Vec x, uint16_t* p, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), narrowed(x));
  }
  // Vectors without NaN are rounded by fewer instructions.
  static void store_two(Vec x, Vec y, uint16_t* p) {
    if (__builtin_expect(_mm512_cmp_ps_mask(x.v, y.v, _CMP_UNORD_Q) != 0, 0)) {
      store(x, p);
      store(y, p + Vec::kWidth);
      return;
    }
    alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                        23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                        45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper = _mm512_load_si512(kUpper);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(rounded(x), upper, rounded(y)));
  }
  // For sums of products of pairs: the instruction takes denormal values for zero, as those products do.
  static void store_sum(Vec x, uint16_t* p) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x.v));
#else
    store(x, p);
#endif
  }
  static void store_two_sums(Vec x, Vec y, uint16_t* p) {
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(y.v, x.v));
#else
    store_two(x, y, p);
#endif
  }
#if defined(__AVX512BF16__)
  static constexpr bool kInterleaves = true;
  // For sums of products: each of `lanes` behind one of `others`.
  static void store_interleaved(Vec x, const uint16_t* others, int64_t lanes, uint16_t* p) {
    const __m512i sums = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.v));
    if (lanes >= Vec::kWidth) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(others));
      _mm512_storeu_si512(p, _mm512_or_si512(_mm512_cvtepu16_epi32(bits), _mm512_slli_epi32(sums, 16)));
      return;
    }
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(lanes), others));
    _mm512_mask_storeu_epi32(p, first(lanes), _mm512_or_si512(bits, _mm512_slli_epi32(sums, 16)));
  }
#else
  static constexpr bool kInterleaves = false;
#endif
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const uint16_t* p, Vec& even, Vec& odd) {
    const __m512i u = _mm512_loadu_si512(p);
    even = {_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))};
    odd = {_mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }

 private:
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec widened(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // The upper halves count. Not for NaN.
  static __m512i rounded(Vec x) {
    const __m512i u = _mm512_castps_si512(x.v);
    const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), tie);
  }
  static __m256i narrowed(Vec x) {
    const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(x.v), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i bits =
        _mm512_mask_or_epi32(_mm512_srli_epi32(rounded(x), 16), nan, upper, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(bits);
  }
};

// The 16 exponents of a panel of short pairs (short_pairs.h): upper bytes, then lower ones.
class Exponents {
 public:
  explicit Exponents(const uint8_t* bytes) : upper_(lanes(bytes)), lower_(lanes(bytes + 16)) {}
  // A group of 128 values.
  void lengthen(const uint8_t* from, uint16_t* to) const {
    const __m512i low_bits = _mm512_set1_epi8(0x0f), sign = _mm512_set1_epi8(static_cast<char>(0x80)),
                  mantissa = _mm512_set1_epi8(0x7f), codes = _mm512_loadu_si512(from);
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i code = _mm512_and_si512(half ? _mm512_srli_epi16(codes, 4) : codes, low_bits);
      const __m512i rest = _mm512_loadu_si512(from + 64 + 64 * half);
      const __m512i high = _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(upper_, code), rest, sign, kOrAnd);
      const __m512i low =
          _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(lower_, code), rest, mantissa, kOrAnd);
      _mm512_storeu_si512(to + 64 * half, _mm512_unpacklo_epi8(low, high));
      _mm512_storeu_si512(to + 64 * half + 32, _mm512_unpackhi_epi8(low, high));
    }
  }

 private:
  static __m512i lanes(const uint8_t* bytes) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }
  __m512i upper_, lower_;
};

// Register block of dot products: pixels, and halves of a panel of output channels.
constexpr int kDotPixels = 12, kDotHalves = 2;
// With so few, lengthening short pairs takes less time than reading long ones.
constexpr int kShortPixels = 8;

}  // namespace
