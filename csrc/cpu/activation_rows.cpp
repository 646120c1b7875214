#include "cpu/activation_rows.h"

#include <algorithm>
#include <vector>

#include "cpu/bf16_table.h"

namespace cnnfast::cpu {
namespace {

// Where a vector holds several pixels, those of channels that lie in it are summed side by side first.
void add_row_sums(const float* row, int64_t width, int64_t channels, float* sums) {
  const int64_t lanes = kernels().vector_width, pixels = lanes / channels;
  if (pixels < 2 || lanes % channels || width % pixels)
    return kernels().column_sum(row, channels, width, channels, nullptr, sums);
  std::vector<float> wide(static_cast<size_t>(lanes), 0.0f);
  kernels().column_sum(row, lanes, width / pixels, lanes, nullptr, wide.data());
  for (int64_t i = 0; i < lanes; ++i) sums[i % channels] += wide[static_cast<size_t>(i)];
}

template <class X>
void mask_rows(void (*kernel)(const NormBackwardRows<X, float>&, int64_t), const X* grad, int64_t grad_stride,
               const X* output, int64_t output_stride, int64_t pixels, int64_t channels,
               Activation activation, float* to) {
  // A mask does not ask for the channel: pixels side by side are one long one, whose vectors are full.
  const bool dense = grad_stride == channels && output_stride == channels;
  NormBackwardRows<X, float> rows{};
  rows.grad = grad;
  rows.output = output;
  rows.grad_input = to;
  rows.grad_stride = grad_stride;
  rows.output_stride = output_stride;
  rows.channels = dense ? pixels * channels : channels;
  rows.activation = activation;
  kernel(rows, dense ? 1 : pixels);
}

}  // namespace

void activation_gradient_rows(const PixelRows& grad, const PixelRows& output, int64_t first, int64_t pixels,
                              Activation activation, float* scratch, float* to) {
  const int64_t channels = grad.channels;
  if (grad.narrow && output.narrow)
    return mask_rows(bf16_kernels().norm->backward_wide, grad.narrow + first * grad.stride, grad.stride,
                     output.narrow + first * output.stride, output.stride, pixels, channels, activation, to);
  const FloatRows g = float_rows(grad, first, pixels, scratch),
                  y = float_rows(output, first, pixels, scratch + pixels * channels);
  mask_rows(kernels().norm_backward, g.data, g.stride, y.data, y.stride, pixels, channels, activation, to);
}

ActivationRows::ActivationRows(const at::Tensor& grad_output, const at::Tensor& output, Activation activation)
    : size_(image_size(grad_output)), activation_(activation), grad_(pixel_rows(grad_output)) {
  if (activation.kind != Activation::kNone) output_ = pixel_rows(output);
}

void ActivationRows::run(int64_t row, float* to, float* sums) const {
  output_.given() ? mask(row * size_.width, to) : copy(row * size_.width, to);
  if (sums) add_row_sums(to, size_.width, size_.channels, sums);
}

void ActivationRows::copy(int64_t first, float* to) const {
  const FloatRows from = float_rows(grad_, first, size_.width, to);
  if (from.data == to) return;
  for (int64_t x = 0; x < size_.width; ++x)
    std::copy_n(from.data + x * from.stride, size_.channels, to + x * size_.channels);
}

void ActivationRows::mask(int64_t first, float* to) const {
  const int64_t values = size_.width * size_.channels;
  const bool one_is_wide = !grad_.narrow != !output_.narrow;
  float* scratch = one_is_wide ? thread_scratch(ScratchSlot::kWidened, 2 * values) : nullptr;
  activation_gradient_rows(grad_, output_, first, size_.width, activation_, scratch, to);
}

}  // namespace cnnfast::cpu
