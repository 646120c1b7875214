// Eight floats in an AVX register, with FMA.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vec {
  static constexpr int64_t kWidth = 8;
  static constexpr int kPanelVectors = 2;
  static constexpr int kMaxPanelVectors = 3;
  static constexpr bool kScalesByAnyPower = false;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  static Vec load_first(const float* p, int64_t n) {
    return n >= kWidth ? load(p) : Vec{_mm256_maskload_ps(p, first(n))};
  }
  // By parts: a store with a mask takes AMD's CPUs a dozen cycles and more.
  void store_first(float* p, int64_t n) const {
    if (n >= kWidth) return store(p);
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  // a / b for b >= 1; quicker, and less exact, where there is an instruction for it.
  static Vec ratio(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // The instruction returns its second operand where either is NaN, so a NaN in `x` survives.
  static Vec at_least(Vec bound, Vec x) { return {_mm256_max_ps(bound.v, x.v)}; }
  static Vec at_most(Vec bound, Vec x) { return {_mm256_min_ps(bound.v, x.v)}; }
  // NaN in either operand gives NaN, as torch's pooling does.
  static Vec max_nan(Vec best, Vec x) {
    const __m256 m = _mm256_max_ps(x.v, best.v);
    return {_mm256_blendv_ps(m, x.v, _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q))};
  }
  static Vec round(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // x * 2^n for a whole number n with |n| < 127.
  static Vec scale_by_power(Vec x, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
  }
  // 2^(k - 127), where the last nine bits of x hold 0 < k < 255.
  static Vec power_in_last_bits(Vec x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 23))};
  }
  static Vec sqrt(Vec x) { return {_mm256_sqrt_ps(x.v)}; }
  // g where y is positive or NaN, else 0: ReLU's gradient from its output.
  static Vec where_positive(Vec y, Vec g) {
    return {_mm256_and_ps(_mm256_cmp_ps(y.v, _mm256_setzero_ps(), _CMP_NLE_UQ), g.v)};
  }
  // a where x beats `best`, being larger or NaN, else b.
  static Vec where_beats(Vec x, Vec best, Vec a, Vec b) {
    const __m256 larger =
        _mm256_or_ps(_mm256_cmp_ps(x.v, best.v, _CMP_GT_OQ), _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    return {_mm256_blendv_ps(b.v, a.v, larger)};
  }
  // g where a equals b, else 0.
  static Vec where_equal(Vec a, Vec b, Vec g) {
    return {_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ), g.v)};
  }
  // a0 b0 a1 b1 ...
  static void interleave(Vec a, Vec b, Vec& low, Vec& high) {
    const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);
    low = {_mm256_permute2f128_ps(even, odd, 0x20)};
    high = {_mm256_permute2f128_ps(even, odd, 0x31)};
  }
  // Lane k of each `group` lanes, in all of them; constants after inlining.
  static Vec spread(Vec x, int group, int k) {
    if (group == 4) return {spread_quarter(x.v, k)};
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i first = _mm256_and_si256(lane, _mm256_set1_epi32(-group));
    return {_mm256_permutevar8x32_ps(x.v, _mm256_add_epi32(first, _mm256_set1_epi32(k)))};
  }
  // Rows become columns.
  static void transpose(Vec* v) {
    __m256 t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(v[i].v, v[i + 1].v);
      t[i + 1] = _mm256_unpackhi_ps(v[i].v, v[i + 1].v);
    }
    const auto low = [](__m256 a, __m256 b) {
      return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
    };
    const auto high = [](__m256 a, __m256 b) {
      return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
    };
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = low(t[i], t[i + 2]);
      u[i + 1] = high(t[i], t[i + 2]);
      u[i + 2] = low(t[i + 1], t[i + 3]);
      u[i + 3] = high(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j].v = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
      v[4 + j].v = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
    }
  }

 private:
  static __m256 spread_quarter(__m256 x, int k) {
    switch (k) {
      case 0:
        return _mm256_permute_ps(x, 0x00);
      case 1:
        return _mm256_permute_ps(x, 0x55);
      case 2:
        return _mm256_permute_ps(x, 0xaa);
      default:
        return _mm256_permute_ps(x, 0xff);
    }
  }
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// Whether depthwise convolutions ask for what they write.
constexpr bool kFetchesOutput = true;

// Register block: accumulators, weights and one broadcast fit 16 registers.
constexpr int kTilePixels[Vec::kMaxPanelVectors] = {8, 6, 4};
// Sixteen registers: compilers would have too few for addresses or for sums.
constexpr bool kAddressedProducts = true;

// acc[j] += base[k + kStep] * w[j]. The address as one instruction takes it, with no arithmetic in front;
// sums stay in the registers where they are.
template <int kStep, int NV>
[[gnu::always_inline]] inline void add_products(const float* base, int64_t k, const Vec (&w)[NV],
                                                Vec (&acc)[NV]) {
  const auto& memory = *reinterpret_cast<const float (*)[1 << 20]>(base);  // as far as anything is read
  __m256 value;
  __asm__ volatile("vbroadcastss %c[step](%[base],%[k],4), %[value]"
                   : [value] "=x"(value)
                   : [base] "r"(base), [k] "r"(k), [step] "i"(kStep * 4), "m"(memory));
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j)
    __asm__ volatile("vfmadd231ps %[w], %[value], %[acc]"
                     : [acc] "+x"(acc[j].v)
                     : [value] "x"(value), [w] "x"(w[j].v));
}

// The same for Winograd's products.
constexpr int kWinogradVectors = 2;
constexpr int kWinogradRows[kWinogradVectors] = {8, 6};
constexpr int64_t kWinogradChannels = 256;  // at a time

}  // namespace
