// Eight bfloat16 values as a vector of floats, and back.
#pragma once
#include "cpu/vec/avx2.h"

namespace {

struct Bf16 {
  static constexpr bool kCoarse = false;
  static Vec load(const uint16_t* p) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Vec load_first(const uint16_t* p, int64_t n) {
    if (n >= Vec::kWidth) return load(p);
    alignas(16) uint16_t lanes[8] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load(lanes);
  }
  static void store(Vec x, uint16_t* p) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(x)); }
  static void store_first(Vec x, uint16_t* p, int64_t n) {
    if (n >= Vec::kWidth) return store(x, p);
    __m128i part = narrowed(x);
    if (n & 4) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), part);
      part = _mm_unpackhi_epi64(part, part);
      p += 4;
    }
    if (n & 2) {
      const int32_t two = _mm_cvtsi128_si32(part);
      __builtin_memcpy(p, &two, sizeof(two));
      part = _mm_srli_epi64(part, 32);
      p += 2;
    }
    if (n & 1) *p = static_cast<uint16_t>(_mm_extract_epi16(part, 0));
  }
  static void store_two(Vec x, Vec y, uint16_t* p) {
    store(x, p);
    store(y, p + Vec::kWidth);
  }
  static void store_sum(Vec x, uint16_t* p) { store(x, p); }
  static void store_two_sums(Vec x, Vec y, uint16_t* p) { store_two(x, y, p); }
  static constexpr bool kInterleaves = false;
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const uint16_t* p, Vec& even, Vec& odd) {
    const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(u, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
  }

 private:
  static Vec widened(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static __m128i narrowed(Vec x) {
    const __m256i u = _mm256_castps_si256(x.v), upper = _mm256_srli_epi32(u, 16);
    const __m256i tie = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), tie);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    const __m256i bits = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  }
};

// The 16 exponents of a panel of short pairs (short_pairs.h): upper bytes, then lower ones.
class Exponents {
 public:
  explicit Exponents(const uint8_t* bytes) : upper_(lanes(bytes)), lower_(lanes(bytes + 16)) {}
  // A group of 128 values.
  void lengthen(const uint8_t* from, uint16_t* to) const {
    const __m256i low_bits = _mm256_set1_epi8(0x0f), mantissa = _mm256_set1_epi8(0x7f);
    for (int part = 0; part < 4; ++part) {  // half of 64 bytes
      const int half = part / 2, byte = part % 2 * 32;
      const __m256i codes = load(from + byte), rest = load(from + 64 + 64 * half + byte);
      const __m256i code = _mm256_and_si256(half ? _mm256_srli_epi16(codes, 4) : codes, low_bits);
      const __m256i high =
          _mm256_or_si256(_mm256_shuffle_epi8(upper_, code), _mm256_andnot_si256(mantissa, rest));
      const __m256i low =
          _mm256_or_si256(_mm256_shuffle_epi8(lower_, code), _mm256_and_si256(mantissa, rest));
      auto* at = reinterpret_cast<__m256i*>(to + 64 * half + part % 2 * 16);
      _mm256_storeu_si256(at, _mm256_unpacklo_epi8(low, high));
      _mm256_storeu_si256(at + 2, _mm256_unpackhi_epi8(low, high));
    }
  }

 private:
  static __m256i load(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  }
  static __m256i lanes(const uint8_t* bytes) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }
  __m256i upper_, lower_;
};

// Register block of dot products: pixels, and halves of a panel of output channels.
constexpr int kDotPixels = 4, kDotHalves = 1;
// With so few, lengthening short pairs takes less time than reading long ones.
constexpr int kShortPixels = 4;

}  // namespace
