// The transform of weights, in float32 or, where it happens once, in double.
#pragma once
#include "cpu/kernels/winograd_transforms.inl"

namespace {

template <int N, int K>
void transform_kernels(const float* gathered, int64_t inputs, int64_t lanes, float* to, int64_t point) {
  for (int64_t i = 0; i < inputs; ++i, gathered += K * K * lanes, to += lanes)
    for (int64_t lane = 0; lane < lanes; lane += Vec::kWidth) {
      Vec t[N * K];
#pragma GCC unroll 5
      for (int x = 0; x < K; ++x) {
        Vec g[K];
#pragma GCC unroll 5
        for (int y = 0; y < K; ++y) g[y] = Vec::load(gathered + (y * K + x) * lanes + lane);
        transform_kernel<N, K>(g, t + x, K);
      }
#pragma GCC unroll 16
      for (int y = 0; y < N; ++y) {
        Vec u[N];
        transform_kernel<N, K>(t + y * K, u, 1);
#pragma GCC unroll 16
        for (int x = 0; x < N; ++x) u[x].store(to + (y * N + x) * point + lane);
      }
    }
}

// By float32 arithmetic; for one input channel after the other.
void quick_winograd_weights(const WinogradWeightsCall& c) {
  switch (c.points * 16 + c.size) {
    case 4 * 16 + 3:
      return transform_kernels<4, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 5 * 16 + 3:
      return transform_kernels<5, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 6 * 16 + 3:
      return transform_kernels<6, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 8 * 16 + 3:
      return transform_kernels<8, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 9 * 16 + 3:
      return transform_kernels<9, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 6 * 16 + 5:
      return transform_kernels<6, 5>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 8 * 16 + 5:
      return transform_kernels<8, 5>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 10 * 16 + 5:
      return transform_kernels<10, 5>(c.kernels, c.inputs, c.lanes, c.output, c.step);
  }
}

// Plain loops over lanes, which the compiler turns into vectors of doubles.
void exact_winograd_weights(const WinogradWeightsCall& c, const float* kernels, float* out) {
  constexpr int64_t kLanes = Vec::kPanelVectors * Vec::kWidth, kSize = 5;
  double rows[kSize * kLanes];
  for (int64_t i = 0; i < c.points; ++i) {
    for (int64_t x = 0; x < c.size; ++x) {
      double* row = rows + x * kLanes;
      for (int64_t k = 0; k < c.lanes; ++k) row[k] = 0.0;
      for (int64_t y = 0; y < c.size; ++y) {
        const double factor = c.matrix[i * c.size + y];
        const float* kernel = kernels + (y * c.size + x) * c.lanes;
        for (int64_t k = 0; k < c.lanes; ++k) row[k] += factor * static_cast<double>(kernel[k]);
      }
    }
    for (int64_t j = 0; j < c.points; ++j, out += c.step) {
      double sum[kLanes] = {};
      for (int64_t x = 0; x < c.size; ++x) {
        const double factor = c.matrix[j * c.size + x];
        for (int64_t k = 0; k < c.lanes; ++k) sum[k] += factor * rows[x * kLanes + k];
      }
      for (int64_t k = 0; k < c.lanes; ++k) out[k] = static_cast<float>(sum[k]);
    }
  }
}

// Kernels of one row, by the same matrix from one side.
void line_winograd_weights(const WinogradWeightsCall& c, const float* kernels, float* out) {
  constexpr int64_t kLanes = Vec::kPanelVectors * Vec::kWidth;
  for (int64_t i = 0; i < c.points; ++i, out += c.step) {
    double sum[kLanes] = {};
    for (int64_t x = 0; x < c.size; ++x) {
      const double factor = c.matrix[i * c.size + x];
      for (int64_t k = 0; k < c.lanes; ++k) sum[k] += factor * static_cast<double>(kernels[x * c.lanes + k]);
    }
    for (int64_t k = 0; k < c.lanes; ++k) out[k] = static_cast<float>(sum[k]);
  }
}

void winograd_weights(const WinogradWeightsCall& c) {
  if (c.line) {
    for (int64_t i = 0; i < c.inputs; ++i)
      line_winograd_weights(c, c.kernels + i * c.size * c.lanes, c.output + i * c.lanes);
    return;
  }
  if (c.quick) return quick_winograd_weights(c);
  for (int64_t i = 0; i < c.inputs; ++i)
    exact_winograd_weights(c, c.kernels + i * c.size * c.size * c.lanes, c.output + i * c.lanes);
}

}  // namespace
