// Sixteen bfloat16 values as a vector of floats, and products of pairs by AVX512-BF16.
#pragma once
#include "cpu/vec16/avx512.h"

namespace {

// The instruction takes denormal values for zero and rounds each pair's sum once more than multiply-adds do.
struct NativeDot {
  using Operand = uint16_t;
  using Weights = __m512i;
  static void gather(const uint16_t* from, int64_t count, uint16_t* to) {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
  }
  static Weights load(const uint16_t* pairs) { return _mm512_loadu_si512(pairs); }
  static Vec add(Weights w, const uint16_t* pair, Vec acc) {
    int32_t both;
    __builtin_memcpy(&both, pair, sizeof(both));
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)_mm512_set1_epi32(both), (__m512bh)w)};
  }
};

}  // namespace
