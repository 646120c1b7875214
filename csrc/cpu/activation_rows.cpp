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

}  // namespace

void activation_gradient_rows(const FloatRows& grad, const FloatRows& output, int64_t pixels,
                              int64_t channels, Activation activation, float* to) {
  // A mask does not ask for the channel: pixels side by side are one long one, whose vectors are full.
  const bool dense = grad.stride == channels && output.stride == channels;
  NormBackwardCall call{};
  call.grad = grad.data;
  call.output = output.data;
  call.grad_residual = to;
  call.grad_stride = grad.stride;
  call.output_stride = output.stride;
  call.channels = dense ? pixels * channels : channels;
  call.activation = activation;
  kernels().norm_backward(call, dense ? 1 : pixels);
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
  float* scratch =
      grad_.narrow || output_.narrow ? thread_scratch(ScratchSlot::kWidened, 2 * values) : nullptr;
  const FloatRows grad = float_rows(grad_, first, size_.width, scratch),
                  output = float_rows(output_, first, size_.width, scratch + values);
  activation_gradient_rows(grad, output, size_.width, size_.channels, activation_, to);
}

}  // namespace cnnfast::cpu
