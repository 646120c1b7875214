// One-dimensional transforms of Winograd's algorithm F(m, r), n = m + r - 1, for the points of
// cpu/winograd_points.h; constants are folded at compile time.
#pragma once
#include "cpu/winograd_points.h"

namespace {

// Coefficients of the product of (x^2 - p^2) over all pairs but `left_out`, by powers of x^2.
template <int N>
struct PairProduct {
  double c[WinogradPoints<N>::kPairs + 1];
  constexpr explicit PairProduct(int left_out) : c{} {
    c[0] = 1.0;
    int degree = 0;
    for (int q = 0; q < WinogradPoints<N>::kPairs; ++q) {
      if (q == left_out) continue;
      const double square = WinogradPoints<N>::kPair[q] * WinogradPoints<N>::kPair[q];
      ++degree;
      for (int k = degree; k > 0; --k) c[k] = c[k - 1] - square * c[k];
      c[0] *= -square;
    }
  }
};

// Terms of that product times x^(first): in[first], in[first + 2], ... The coefficients are template
// arguments in effect, for the compiler to see them as constants.
template <int N, int LeftOut, int K>
inline Vec product_terms(const Vec* in, int step, Vec sum) {
  if constexpr (K < 0) {
    return sum;
  } else {
    constexpr float coefficient = static_cast<float>(PairProduct<N>(LeftOut).c[K]);
    return product_terms<N, LeftOut, K - 1>(in, step,
                                            Vec::fma(Vec::set1(coefficient), in[2 * K * step], sum));
  }
}

template <int N, int LeftOut>
inline Vec product_of(const Vec* in, int step) {
  constexpr int degree = WinogradPoints<N>::kPairs - (LeftOut >= 0 ? 1 : 0);
  return product_terms<N, LeftOut, degree - 1>(in, step, in[2 * degree * step]);
}

template <int N, int Q>
inline void transform_input_pairs(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  if constexpr (Q < P::kPairs) {
    constexpr int zero = P::kZero ? 1 : 0;
    constexpr float point = static_cast<float>(P::kPair[Q]);
    const Vec even = product_of<N, Q>(in + (1 + zero) * in_step, in_step);
    Vec odd = product_of<N, Q>(in + zero * in_step, in_step);
    if constexpr (point != 1.0f) odd = odd * Vec::set1(point);
    out[(zero + 2 * Q) * out_step] = even + odd;
    out[(zero + 2 * Q + 1) * out_step] = even - odd;
    transform_input_pairs<N, Q + 1>(in, in_step, out, out_step);
  }
}

// One dimension of the input transform: in[i * in_step] -> out[i * out_step], N values each. Row i of the
// matrix holds the coefficients of the product of (x - q) over all finite points q but the i-th.
template <int N>
inline void transform_input(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  if constexpr (P::kZero) out[0] = product_of<N, -1>(in, in_step);
  transform_input_pairs<N, 0>(in, in_step, out, out_step);
  out[(N - 1) * out_step] = product_of<N, -1>(in + (P::kZero ? in_step : 0), in_step);
}

constexpr double power(double x, int k) { return k == 0 ? 1.0 : x * power(x, k - 1); }

// Product of the distances of point +p of pair Q to all other finite points; that of -p is as large, with the
// opposite sign where 0 is no point.
template <int N, int Q>
constexpr double pair_distance() {
  using P = WinogradPoints<N>;
  double product = P::kZero ? 2.0 * P::kPair[Q] * P::kPair[Q] : 2.0 * P::kPair[Q];
  for (int q = 0; q < P::kPairs; ++q)
    if (q != Q) product *= P::kPair[Q] * P::kPair[Q] - P::kPair[q] * P::kPair[q];
  return product;
}

template <int N>
constexpr double zero_distance() {
  double product = 1.0;
  for (int q = 0; q < WinogradPoints<N>::kPairs; ++q)
    product *= -WinogradPoints<N>::kPair[q] * WinogradPoints<N>::kPair[q];
  return product;
}

// The even (FIRST = 0) or odd (FIRST = 1) powers of a point times kernel values, over the point's distance.
template <int N, int K, int Q, int FIRST>
inline Vec kernel_terms(const Vec* g) {
  constexpr double point = WinogradPoints<N>::kPair[Q];
  constexpr float c0 = static_cast<float>(power(point, FIRST) / pair_distance<N, Q>()),
                  c2 = static_cast<float>(power(point, FIRST + 2) / pair_distance<N, Q>()),
                  c4 = static_cast<float>(power(point, FIRST + 4) / pair_distance<N, Q>());
  Vec sum = g[FIRST] * Vec::set1(c0);
  if constexpr (FIRST + 2 < K) sum = Vec::fma(g[FIRST + 2], Vec::set1(c2), sum);
  if constexpr (FIRST + 4 < K) sum = Vec::fma(g[FIRST + 4], Vec::set1(c4), sum);
  return sum;
}

template <int N, int K, int Q>
inline void transform_kernel_pairs(const Vec* g, Vec* out, int step) {
  using P = WinogradPoints<N>;
  if constexpr (Q < P::kPairs) {
    constexpr int zero = P::kZero ? 1 : 0;
    const Vec even = kernel_terms<N, K, Q, 0>(g), odd = kernel_terms<N, K, Q, 1>(g);
    out[(zero + 2 * Q) * step] = even + odd;
    out[(zero + 2 * Q + 1) * step] = P::kZero ? even - odd : odd - even;
    transform_kernel_pairs<N, K, Q + 1>(g, out, step);
  }
}

// One dimension of the kernel transform: K values -> N values; row i of the matrix holds the powers of point
// i over the product of its distances to the other points.
template <int N, int K>
inline void transform_kernel(const Vec* g, Vec* out, int step) {
  static_assert(K >= 2 && K <= 6);
  if constexpr (WinogradPoints<N>::kZero)
    out[0] = g[0] * Vec::set1(static_cast<float>(1.0 / zero_distance<N>()));
  transform_kernel_pairs<N, K, 0>(g, out, step);
  out[(N - 1) * step] = g[K - 1];
}

template <int N, int K, int Q>
inline Vec pair_terms(const Vec* part, Vec y) {
  if constexpr (Q == WinogradPoints<N>::kPairs) {
    return y;
  } else {
    constexpr float factor = static_cast<float>(power(WinogradPoints<N>::kPair[Q], K));
    if constexpr (factor == 1.0f)
      return pair_terms<N, K, Q + 1>(part, y + part[Q]);
    else
      return pair_terms<N, K, Q + 1>(part, Vec::fma(part[Q], Vec::set1(factor), y));
  }
}

template <int N, int M, int K>
inline void transform_output_rows(const Vec* in, int in_step, const Vec* sum, const Vec* difference, Vec* out,
                                  int out_step) {
  if constexpr (K < M) {
    using P = WinogradPoints<N>;
    const Vec* part = K % 2 ? difference : sum;
    constexpr float factor = static_cast<float>(power(P::kPair[0], K));
    Vec y = factor == 1.0f ? part[0] : part[0] * Vec::set1(factor);
    if constexpr (K == 0 && P::kZero) y = y + in[0];
    y = pair_terms<N, K, 1>(part, y);
    if constexpr (K == M - 1) y = y + in[(N - 1) * in_step];
    out[K * out_step] = y;
    transform_output_rows<N, M, K + 1>(in, in_step, sum, difference, out, out_step);
  }
}

// One dimension of the output transform: N values -> M values; row k of the matrix holds the k-th powers.
template <int N, int M>
inline void transform_output(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  constexpr int zero = P::kZero ? 1 : 0;
  Vec sum[P::kPairs], difference[P::kPairs];
#pragma GCC unroll 4
  for (int q = 0; q < P::kPairs; ++q) {
    const Vec plus = in[(zero + 2 * q) * in_step], minus = in[(zero + 2 * q + 1) * in_step];
    sum[q] = plus + minus;
    difference[q] = plus - minus;
  }
  transform_output_rows<N, M, 0>(in, in_step, sum, difference, out, out_step);
}

}  // namespace
