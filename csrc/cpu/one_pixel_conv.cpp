#include "cpu/one_pixel_conv.h"

#include <ATen/Functions.h>

#include "cpu/pack_cache.h"
#include "cpu/streamed_linear.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

bool is_image(const at::Tensor& t) { return t.dim() == 4 && (is_plain_float(t) || takes_widened(t)); }

bool has_pixels_outside(const at::Tensor& weight) {
  return !weight.is_contiguous() && weight.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Features of an image in the order in which a kernel of `weight` lies in memory.
at::Tensor as_rows(const at::Tensor& images, const at::Tensor& weight) {
  const at::Tensor t = has_pixels_outside(weight) ? images.permute({0, 2, 3, 1}) : images;
  return widened(t.contiguous()).reshape({images.size(0), -1});
}
at::Tensor as_images(const at::Tensor& rows, const at::Tensor& weight) {
  const int64_t c = weight.size(1), h = weight.size(2), w = weight.size(3);
  return has_pixels_outside(weight) ? rows.view({-1, h, w, c}).permute({0, 3, 1, 2})
                                    : rows.view({-1, c, h, w});
}

bool serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p) {
  const auto covers = [&](int i) {
    return input.size(2 + i) == weight.size(2 + i) && p.padding[i] == 0 &&
           (p.dilation[i] == 1 || weight.size(2 + i) == 1);
  };
  if (!is_image(input) || !is_plain_float(weight) || weight.dim() != 4 || p.groups != 1 || !covers(0) ||
      !covers(1))
    return false;
  if (!weight.is_contiguous() && !has_pixels_outside(weight)) return false;
  constexpr int64_t kFewImages = 32;
  return input.size(0) > 0 && input.size(0) <= kFewImages && weight.numel() > kManyWeights;
}

}  // namespace

at::Tensor one_pixel_conv(const Conv2dArgs& a, at::IntArrayRef output_sizes) {
  if (present(a.scale) || present(a.residual) || !is_trained(a.weight) ||
      !serves(a.input, a.weight, a.params))
    return {};
  at::Tensor y = streamed_linear(as_rows(a.input, a.weight), as_rows(a.weight, a.weight));
  if (present(a.bias)) y.add_(*a.bias);
  y = activate(y, parse_activation("conv2d", a.activation));
  return rounded_to(a.input.scalar_type(),
                    y.view({output_sizes[0], 1, 1, output_sizes[1]}).permute({0, 3, 1, 2}));
}

std::optional<OnePixelGradients> one_pixel_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                    const at::Tensor& weight, const at::Tensor& output,
                                                    const Conv2dParams& params, const Activation& activation,
                                                    std::array<bool, 3> output_mask) {
  if (!is_image(grad_output) || !is_image(output) || !serves(input, weight, params)) return {};
  const auto [need_input, need_weight, need_bias] = output_mask;
  const auto features = [](const at::Tensor& t) {
    return widened(t.contiguous()).reshape({t.size(0), t.size(1)});
  };
  const at::Tensor rows = features(grad_output);
  const at::Tensor grad =
      activation_backward(rows, output.is_same(grad_output) ? rows : features(output), activation)
          .contiguous();
  OnePixelGradients found;
  if (need_input)
    found.input = rounded_to(input.scalar_type(),
                             as_images(streamed_linear_input_grad(grad, as_rows(weight, weight)), weight)
                                 .contiguous(input.suggest_memory_format()));
  if (need_weight)
    found.weight = as_images(streamed_linear_weight_grad(grad, as_rows(input, weight)), weight);
  if (need_bias) found.bias = grad.sum(0);
  return found;
}

}  // namespace cnnfast::cpu
