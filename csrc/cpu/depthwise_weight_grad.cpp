#include "cpu/depthwise_weight_grad.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// A strip's input, for a vector of channels, stays in the second-level cache while blocks of taps pass over
// it. Sums in registers are those of so few pixels that rounding errors stay small.
constexpr int64_t kStripFloats = 1 << 14;
constexpr int64_t kStripPixels = 512;
// Below this much work a second thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 18;

bool is_image(const at::Tensor& t) {
  return t.dim() == 4 && t.numel() > 0 && (is_plain_float(t) || takes_widened(t));
}

int64_t strip_of(const DepthwiseGradCall& c) {
  const int64_t row = kernels().vector_width * c.in_width * c.stride_h;
  return std::clamp<int64_t>(std::min(kStripFloats / row, kStripPixels / c.width), 1, c.height);
}

int64_t vectors_of(const DepthwiseGradCall& c) {
  return (c.channels + kernels().vector_width - 1) / kernels().vector_width;
}

// Few vectors do not share out evenly: then parts of the images have sums of their own, as many for any
// number of threads.
int64_t parts_of(const DepthwiseGradCall& c) {
  constexpr int64_t kUnits = 8;
  return std::clamp<int64_t>(kUnits / vectors_of(c), 1, c.images);
}

DepthwiseGradCall part_of(DepthwiseGradCall call, int64_t part, int64_t parts, int64_t part_step) {
  const int64_t first = call.images * part / parts, last = call.images * (part + 1) / parts;
  if (call.input.data) call.input.data += first * call.input.image;
  if (call.input16.data) call.input16.data += first * call.input16.image;
  if (call.grad.data) call.grad.data += first * call.grad.image;
  if (call.grad16.data) call.grad16.data += first * call.grad16.image;
  call.images = last - first;
  call.to += part * part_step;
  return call;
}

void run_parts(const DepthwiseGradCall& call, int64_t parts, int64_t part_step) {
  const int64_t vectors = vectors_of(call), products = call.images * call.channels * call.height *
                                                       call.width * call.kernel_h * call.kernel_w;
  parallel_team(products < kSerialProducts ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(vectors * parts, 1, thread, team);
    if (begin == end) return;
    float* const scratch = thread_scratch(ScratchSlot::kStrip, kernels().depthwise_gradient_scratch(call));
    for (int64_t unit = begin; unit < end; ++unit) {
      DepthwiseGradCall own = part_of(call, unit / vectors, parts, part_step);
      own.scratch = scratch;
      kernels().depthwise_gradient(own, unit % vectors, unit % vectors + 1);
    }
  });
}

}  // namespace

bool serves_depthwise_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                               const at::Tensor& weight, int64_t groups) {
  return groups > 1 && weight.dim() == 4 && weight.size(0) == groups && weight.size(1) == 1 &&
         is_image(grad_output) && is_image(input) && (is_plain_float(weight) || takes_widened(weight));
}

at::Tensor depthwise_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& weight, const Conv2dParams& p) {
  const at::Tensor images = images_of(input), grad = images_of(grad_output);
  at::Tensor to = float_gradient_empty_like(weight);
  DepthwiseGradCall call{};
  if (is_plain_float(images))
    call.input = view_of(images);
  else
    call.input16 = view16_of(images);
  if (is_plain_float(grad))
    call.grad = view_of(grad);
  else
    call.grad16 = view16_of(grad);
  call.images = grad.size(0);
  call.channels = grad.size(1);
  call.in_height = images.size(2);
  call.in_width = images.size(3);
  call.height = grad.size(2);
  call.width = grad.size(3);
  call.kernel_h = weight.size(2);
  call.kernel_w = weight.size(3);
  call.stride_h = p.stride[0];
  call.stride_w = p.stride[1];
  call.pad_h = p.padding[0];
  call.pad_w = p.padding[1];
  call.dilation_h = p.dilation[0];
  call.dilation_w = p.dilation[1];
  call.strip = strip_of(call);
  const int64_t parts = parts_of(call);
  const at::Tensor sums =
      parts > 1 ? at::empty({parts, call.channels, 1, call.kernel_h, call.kernel_w}, to.options())
                : to.unsqueeze(0);
  const WeightStrides strides = weight_strides(sums[0]);
  call.to = sums.data_ptr<float>();
  call.to_channel = strides.out;
  call.to_row = strides.row;
  call.to_column = strides.column;
  run_parts(call, parts, sums.stride(0));
  if (parts > 1) at::sum_out(to, sums, {0});
  return to;
}

}  // namespace cnnfast::cpu
