// Transforms of Winograd's algorithm from one side for strides 1 and 2 (see ConvAlgorithm).
#pragma once
#include "cpu/kernels/winograd_transforms.inl"

namespace {

// N pixels and points, M results. Stride 2: of the points come first the kEven of pixels at even places, then
// the pixels at odd places.
template <int N, int M, int S>
struct TileSide {
  static_assert(S == 1 || (S == 2 && N == 2 * M + 1));
  static constexpr int kEven = S == 1 ? N : M + 1;
  static constexpr int kKernels = S == 1 ? N : kEven + 1;  // points with kernels of their own

  static constexpr int kernel_of(int point) { return point < kKernels ? point : kKernels - 1; }
  // Points of a kernel.
  static constexpr int begin(int kernel) { return kernel; }
  static constexpr int end(int kernel) { return kernel == kKernels - 1 ? N : kernel + 1; }

  static void transform(const Vec* in, int in_step, Vec* out, int out_step) {
    transform_input<kEven>(in, S * in_step, out, out_step);
#pragma GCC unroll 8
    for (int i = kEven; i < N; ++i) out[i * out_step] = in[(2 * (i - kEven) + 1) * in_step];
  }
  static void transform_back(const Vec* in, int in_step, Vec* out, int out_step) {
    transform_output<kEven, M>(in, in_step, out, out_step);
#pragma GCC unroll 8
    for (int i = kEven; i < N; ++i)
      out[(i - kEven) * out_step] = out[(i - kEven) * out_step] + in[i * in_step];
  }
};

}  // namespace
