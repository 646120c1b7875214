// Sixteen floats in an AVX-512 register.
#pragma once
// GCC 12 takes the undefined operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>

namespace {

struct Vec {
  static constexpr int64_t kWidth = 16;
  static constexpr int kPanelVectors = 4;
  static constexpr int kMaxPanelVectors = 4;
  static constexpr bool kScalesByAnyPower = true;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Vec load_first(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store_first(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // a / b for b >= 1, two units in the last place at most apart: an approximation of 14 bits and a Newton
  // step, a quarter of the time of a division. The step is left out where it would meet infinity times zero.
  static Vec ratio(Vec a, Vec b) {
    const __m512 r = _mm512_rcp14_ps(b.v);
    const __m512 rest = _mm512_fnmadd_ps(b.v, r, _mm512_set1_ps(1.0f));
    const __mmask16 finite = _mm512_cmp_ps_mask(b.v, _mm512_set1_ps(3.4028235e38f), _CMP_NGT_UQ);
    return {_mm512_mul_ps(a.v, _mm512_mask3_fmadd_ps(rest, r, r, finite))};
  }
  // The instruction returns its second operand where either is NaN, so a NaN in `x` survives.
  static Vec at_least(Vec bound, Vec x) { return {_mm512_max_ps(bound.v, x.v)}; }
  static Vec at_most(Vec bound, Vec x) { return {_mm512_min_ps(bound.v, x.v)}; }
  // NaN in either operand gives NaN, as torch's pooling does.
  static Vec max_nan(Vec best, Vec x) {
    const __m512 m = _mm512_max_ps(x.v, best.v);
    return {_mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), x.v)};
  }
  static Vec round(Vec x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // x * 2^n for a whole number n.
  static Vec scale_by_power(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  static Vec sqrt(Vec x) { return {_mm512_sqrt_ps(x.v)}; }
  // g where y is positive or NaN, else 0: ReLU's gradient from its output.
  static Vec where_positive(Vec y, Vec g) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y.v, _mm512_setzero_ps(), _CMP_NLE_UQ), g.v)};
  }
  // a where x beats `best`, being larger or NaN, else b.
  static Vec where_beats(Vec x, Vec best, Vec a, Vec b) {
    const auto larger =
        _mm512_cmp_ps_mask(x.v, best.v, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>(larger), a.v)};
  }
  // g where a equals b, else 0.
  static Vec where_equal(Vec a, Vec b, Vec g) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), g.v)};
  }
  // a0 b0 a1 b1 ...
  static void interleave(Vec a, Vec b, Vec& low, Vec& high) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    low = {_mm512_permutex2var_ps(a.v, first, b.v)};
    high = {_mm512_permutex2var_ps(a.v, second, b.v)};
  }
  // Lane k of each `group` lanes, in all of them; constants after inlining.
  static Vec spread(Vec x, int group, int k) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i first = _mm512_and_si512(lane, _mm512_set1_epi32(-group));
    return {_mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(k)), x.v)};
  }
  // Rows become columns.
  static void transpose(Vec* v) {
    __m512 t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
    }
    const auto low = [](__m512 a, __m512 b) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto high = [](__m512 a, __m512 b) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    // Quarter q of u[4 i + j] is column 4 q + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = low(t[i], t[i + 2]);
      u[i + 1] = high(t[i], t[i + 2]);
      u[i + 2] = low(t[i + 1], t[i + 3]);
      u[i + 3] = high(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88);
      const __m512 b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
      const __m512 c = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
      const __m512 d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
      v[j].v = _mm512_shuffle_f32x4(a, b, 0x88);
      v[4 + j].v = _mm512_shuffle_f32x4(c, d, 0x88);
      v[8 + j].v = _mm512_shuffle_f32x4(a, b, 0xdd);
      v[12 + j].v = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
  }

 private:
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// Whether depthwise convolutions ask for what they write; not measured here.
constexpr bool kFetchesOutput = false;

// Register block: output pixels per panel width; accumulators, weights and one broadcast fit 32 registers.
constexpr int kTilePixels[Vec::kMaxPanelVectors] = {16, 8, 8, 6};
constexpr bool kAddressedProducts = false;

// The same for Winograd's products, whose rows lie at fixed distances and need one address register.
constexpr int kWinogradVectors = 2;
constexpr int kWinogradRows[kWinogradVectors] = {14, 14};
constexpr int64_t kWinogradChannels = int64_t{1} << 40;  // at a time: all

}  // namespace

#include "cpu/vec/products.h"
