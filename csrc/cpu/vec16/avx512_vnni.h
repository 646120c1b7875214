// Whole numbers of 16 bits in blocks that share a scale, and their products by AVX512-VNNI.
#pragma once
#include "cpu/vec16/avx512.h"

namespace {

struct Fixed {
  // acc[i] += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], exact while the sums fit 32 bits. As assembly: GCC 12
  // copies every accumulator around the intrinsic, and spills.
  static void add_pairs(__m512i& acc, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  }
  // The same with one pair of numbers sixteen times.
  static void add_spread(__m512i& acc, const int16_t* pair, __m512i b) {
    struct Both {
      int16_t numbers[2];
    };
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*reinterpret_cast<const Both*>(pair)));
  }
  // Two numbers, sixteen times.
  static __m512i spread(const int16_t* pair) {
    int32_t both;
    __builtin_memcpy(&both, pair, sizeof(both));
    return _mm512_set1_epi32(both);
  }
  static __m512i load(const int16_t* p) { return _mm512_loadu_si512(p); }
  static Vec value(__m512i sums) { return {_mm512_cvtepi32_ps(sums)}; }

  // Bits of the absolute values: as whole numbers they are in the order of the values, NaN above infinity.
  static __m512i magnitude(Vec x) {
    return _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
  }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epu32(a, b); }

  // Lane i: the largest of vector i.
  static __m512i largest_lanes(const __m512i* x) {
    __m512i y[8], z[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i low = _mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0x44);
      y[i] = larger(low, _mm512_shuffle_i32x4(x[2 * i], x[2 * i + 1], 0xee));
    }
    // Quarter q of z[i]: four values of vector 4 * i + q.
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i even = _mm512_shuffle_i32x4(y[2 * i], y[2 * i + 1], 0x88);
      z[i] = larger(even, _mm512_shuffle_i32x4(y[2 * i], y[2 * i + 1], 0xdd));
    }
    const __m512i low = larger(_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[0], z[1]));
    const __m512i high = larger(_mm512_unpacklo_epi32(z[2], z[3]), _mm512_unpackhi_epi32(z[2], z[3]));
    // Lane 4 * q + i: vector 4 * i + q.
    const __m512i all = larger(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, all);
  }

  // What makes whole numbers up to `limit` of values up to these magnitudes, and its inverse: NaN where a
  // value is not finite. Values below 2^-100 count as zero.
  static void scales(__m512i magnitudes, float limit, Vec& to_fixed, Vec& back) {
    const Vec most{_mm512_castsi512_ps(larger(magnitudes, _mm512_set1_epi32((127 - 86) << 23)))};
    to_fixed = Vec::set1(limit) / most;
    back = Vec::fma(most, Vec::set1(1.0f / limit), most - most);
  }

  static Vec size(Vec x) { return {_mm512_abs_ps(x.v)}; }
  // Lane i: numbers of x and of y beside each other.
  static void store_pairs(Vec x, Vec y, Vec to_fixed, int16_t* p) {
    const __m512i low = _mm512_and_si512(_mm512_cvtps_epi32((x * to_fixed).v), _mm512_set1_epi32(0xffff));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtps_epi32((y * to_fixed).v), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
  }
  // 32 values times `to_fixed`, to nearest: numbers far below 2^22, which stand in the last bits of a sum
  // with 1.5 * 2^23.
  static void store_two(Vec x, Vec y, Vec to_fixed, int16_t* p) {
    const Vec above = Vec::set1(12582912.0f);
    const __m512i low = _mm512_castps_si512(Vec::fma(x, to_fixed, above).v);
    const __m512i high = _mm512_castps_si512(Vec::fma(y, to_fixed, above).v);
    const __m512i even_words =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22,
                         20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(low, even_words, high));
  }
};

}  // namespace
