#include "cpu/pixel_rows.h"

#include <ATen/Functions.h>

#include "cpu/planes.h"

namespace cnnfast::cpu {
namespace {

PixelRows rows_in(const at::Tensor& t, int64_t stride, int64_t rows) {
  if (t.scalar_type() != at::kBFloat16) return {t.const_data_ptr<float>(), stride, rows, t.size(1), t};
  return {nullptr,   stride, rows,
          t.size(1), t,      reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>())};
}

}  // namespace

FloatRows float_rows(const PixelRows& x, int64_t first, int64_t count, float* scratch) {
  if (!x.narrow) return {x.data ? x.data + first * x.stride : nullptr, x.stride};
  bf16_kernels().widen({x.narrow + first * x.stride, x.stride}, {scratch, x.channels}, count, x.channels);
  return {scratch, x.channels};
}

PixelRows pixel_rows(const at::Tensor& t) {
  const int64_t channels = t.size(1), height = t.size(2), width = t.size(3);
  const int64_t stride = width > 1       ? t.stride(3)
                         : height > 1    ? t.stride(2)
                         : t.size(0) > 1 ? t.stride(0)
                                         : channels;
  const bool even = channels_adjacent(t) && (height == 1 || t.stride(2) == width * stride) &&
                    (t.size(0) == 1 || t.stride(0) == height * width * stride);
  const int64_t rows = t.size(0) * height * width;
  return even ? rows_in(t, stride, rows) : rows_in(channels_last_copy(t), channels, rows);
}

}  // namespace cnnfast::cpu
