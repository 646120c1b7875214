#include "cpu/pooled_rows.h"

#include "cpu/activation_rows.h"
#include "cpu/aligned_floats.h"
#include "cpu/box_mean.h"
#include "cpu/images16.h"
#include "cpu/narrow_pool.h"
#include "cpu/pool2d.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
PooledRows::PooledRows(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                       const Stage& pool)
    : max_(pool.kind == StageKind::kMaxPool),
      call_(pool_call(output, pool.pool_params(), grad_output.sizes())),
      size_(image_size(output)),
      activation_(activation),
      images_(images_of(output)),
      grad_(images_of(grad_output)),
      output_(pixel_rows(output)),
      together_(call_.stride_h == call_.kernel_h && call_.pad_h == 0 ? call_.kernel_h : 1) {
  call_.count_include_pad = pool.option != 0;
}

const uint16_t* PooledRows::spread(int64_t first, int64_t count) const {
  const int64_t row = size_.width * size_.channels, values = count * row;
  auto* const to = reinterpret_cast<uint16_t*>(thread_scratch(ScratchSlot::kSpread, (values + 1) / 2));
  const View16 target{to - first * row, size_.height * row, row, size_.channels};
  const NarrowPoolBackward pool{call_, max_ ? view16_of(images_) : View16{}, view16_of(grad_), target};
  max_ ? pool.run(first, first + count) : avg_pool_backward_rows(pool, first, first + count);
  return to;
}

void PooledRows::mask(const uint16_t* spread, int64_t first, int64_t count, float* to) const {
  const int64_t pixels = count * size_.width, channels = size_.channels;
  if (activation_.kind == Activation::kNone)
    return bf16_kernels().widen({spread, channels}, {to, channels}, pixels, channels);
  PixelRows output = output_;
  output.narrow += first * size_.width * output.stride;
  activation_gradient_rows({nullptr, channels, pixels, channels, {}, spread}, output, 0, pixels, activation_,
                           nullptr, to);
}

void PooledRows::run(int64_t first, int64_t count, float* to) const {
  mask(spread(first, count), first, count, to);
}

}  // namespace cnnfast::cpu
