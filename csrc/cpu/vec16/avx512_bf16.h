// Sixteen bfloat16 values as a vector of floats, and products of pairs by AVX512-BF16.
#pragma once
#include "cpu/vec16/avx512.h"

namespace {

// Values of pixels that lie anywhere, sixteen channels of them from `c` on, `count` of which there are.
struct Pairs {
  // `count` values, 32 at most, and zeros up to 32.
  static void copy_first(const uint16_t* from, int64_t count, uint16_t* to) {
    const auto lanes = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(lanes, from));
  }
  // 32 pixels: to[32 * j + 2 * i + k] is channel c + i of pixel 2 * j + k.
  static void interleave(const uint16_t* const* pixels, int64_t c, int64_t count, uint16_t* to) {
    for (int j = 0; j < 16; ++j)
      _mm512_storeu_si512(to + 32 * j, pair(pixels[2 * j] + c, pixels[2 * j + 1] + c, first(count)));
  }
  // 32 pixels: to[i * step + p] is channel c + i of pixel p. Pairs of pixels are the lanes of a 16 x 16
  // matrix.
  static void transpose(const uint16_t* const* pixels, int64_t c, int64_t count, uint16_t* to, int64_t step) {
    __m512i x[16], y[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = pair(pixels[2 * j] + c, pixels[2 * j + 1] + c, first(count));
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {
      y[j] = _mm512_unpacklo_epi32(x[j], x[j + 1]);
      y[j + 1] = _mm512_unpackhi_epi32(x[j], x[j + 1]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4)
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        x[j + 2 * k] = _mm512_unpacklo_epi64(y[j + k], y[j + k + 2]);
        x[j + 2 * k + 1] = _mm512_unpackhi_epi64(y[j + k], y[j + k + 2]);
      }
    // x[4 * q + i]: pixels of quarter q; channels i, 4 + i, 8 + i, 12 + i in its four parts
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i low = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88);
      const __m512i high = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
      const __m512i low2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
      const __m512i high2 = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
      _mm512_storeu_si512(to + i * step, _mm512_shuffle_i32x4(low, low2, 0x88));
      _mm512_storeu_si512(to + (4 + i) * step, _mm512_shuffle_i32x4(high, high2, 0x88));
      _mm512_storeu_si512(to + (8 + i) * step, _mm512_shuffle_i32x4(low, low2, 0xdd));
      _mm512_storeu_si512(to + (12 + i) * step, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
  }

 private:
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static __m512i pair(const uint16_t* a, const uint16_t* b, __mmask16 lanes) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
};

// The instruction takes denormal values for zero and rounds each pair's sum once more than multiply-adds do.
struct NativeDot {
  using Operand = uint16_t;
  static constexpr bool kAsStored = true;
  using Weights = __m512i;
  static void gather(const uint16_t* from, int64_t count, uint16_t* to) {
    for (; count >= 32; count -= 32, from += 32, to += 32) _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    const auto rest = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    if (count > 0) _mm512_mask_storeu_epi16(to, rest, _mm512_maskz_loadu_epi16(rest, from));
  }
  // A block of kPairBlock gathered values, of which `lanes` come from `from`; no other value is read.
  using Block = __m512i;
  static Block no_values() { return _mm512_setzero_si512(); }
  static Block with(Block block, const uint16_t* from, uint32_t lanes) {
    return _mm512_mask_loadu_epi16(block, lanes, from);
  }
  // The same where all of the block may be read: a load under a mask takes twice as long.
  static Block with_read(Block block, const uint16_t* from, uint32_t lanes) {
    __m512i all = _mm512_loadu_si512(from);
    asm("" : "+v"(all));  // or the compiler makes one instruction of the two
    return _mm512_mask_mov_epi16(block, lanes, all);
  }
  static void store(Block block, uint16_t* to) { _mm512_storeu_si512(to, block); }
  static Weights load(const uint16_t* pairs) { return _mm512_loadu_si512(pairs); }
  // A pair in all lanes.
  using Spread = __m512i;
  static Spread spread(const uint16_t* pair) {
    int32_t both;
    __builtin_memcpy(&both, pair, sizeof(both));
    return _mm512_set1_epi32(both);
  }
  static Vec add(Weights w, Spread pair, Vec acc) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)pair, (__m512bh)w)};
  }
  static Vec add(Weights w, const uint16_t* pair, Vec acc) { return add(w, spread(pair), acc); }
  // Of the first kNarrow channels alone, in half the time.
  static constexpr int64_t kNarrow = 8;
  static Vec add_narrow(Weights w, Spread pair, Vec acc) {
    const __m256 sums =
        _mm256_dpbf16_ps(_mm512_castps512_ps256(acc.v), (__m256bh)_mm512_castsi512_si256(pair),
                         (__m256bh)_mm512_castsi512_si256(w));
    return {_mm512_castps256_ps512(sums)};
  }
};

// 32 channels of two pixels, channel by channel, as two vectors of pairs: in the order of depthwise_channel.
struct ChannelPairs {
  using Values = __m512i;

  struct Whole {
    Values load(const uint16_t* p) const { return _mm512_loadu_si512(p); }
    void store(Values v, uint16_t* p) const { _mm512_storeu_si512(p, v); }
  };
  struct Part {
    explicit Part(int64_t channels) : lanes(static_cast<__mmask32>((uint64_t{1} << channels) - 1)) {}
    Values load(const uint16_t* p) const { return _mm512_maskz_loadu_epi16(lanes, p); }
    void store(Values v, uint16_t* p) const { _mm512_mask_storeu_epi16(p, lanes, v); }
    __mmask32 lanes;
  };

  static Values zero() { return _mm512_setzero_si512(); }
  static Values load(const uint16_t* weights) { return _mm512_loadu_si512(weights); }
  static void join(Values a, Values b, Values& low, Values& high) {
    low = _mm512_unpacklo_epi16(a, b);
    high = _mm512_unpackhi_epi16(a, b);
  }
  static Vec add(Values weights, Values pairs, Vec acc) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)pairs, (__m512bh)weights)};
  }
  static void widen(Values pixel, Vec& low, Vec& high) {
    low = {_mm512_castsi512_ps(_mm512_unpacklo_epi16(zero(), pixel))};
    high = {_mm512_castsi512_ps(_mm512_unpackhi_epi16(zero(), pixel))};
  }
  // In the order of memory.
  static Values rounded(Vec low, Vec high) {
    const __m512i quads = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm512_permutexvar_epi64(quads, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
  }
};

// 16 channels of a pixel, and pairs of them spread over the lanes of their groups.
struct GroupPairs {
  using Values = __m512i;

  struct Whole {
    Values load(const uint16_t* p) const {
      return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    void store(Vec v, uint16_t* p) const {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v.v));
    }
  };
  struct Part {
    explicit Part(int64_t channels) : lanes(static_cast<__mmask16>((1u << channels) - 1)) {}
    Values load(const uint16_t* p) const {
      return _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(lanes, p));
    }
    void store(Vec v, uint16_t* p) const {
      _mm256_mask_storeu_epi16(p, lanes, (__m256i)_mm512_cvtneps_pbh(v.v));
    }
    __mmask16 lanes;
  };

  // Pair `j` of every group of G channels.
  template <int G>
  static Values spread(Values pixel, int j) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr unsigned kShift = G == 8 ? 3 : 2;
    const __m512i first = _mm512_slli_epi32(_mm512_srli_epi32(lane, kShift), kShift - 1);
    return _mm512_permutexvar_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(j)), pixel);
  }
  static Values load(const uint16_t* weights) { return _mm512_loadu_si512(weights); }
  static Vec add(Values weights, Values pairs, Vec acc) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)pairs, (__m512bh)weights)};
  }
  static Vec widen(Values pixel) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(pixel));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
};

}  // namespace
