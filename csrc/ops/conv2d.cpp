#include "ops/conv2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/conv_gradients.h"

namespace cnnfast {

std::vector<c10::SymInt> check_conv2d_geometry(const char* op, const at::Tensor& input,
                                               const at::Tensor& weight, const Conv2dParams& params) {
  check_rank(op, "input", input, 4);
  return conv2d_output_sizes(op, input, input.sym_sizes(), weight, params);
}

std::vector<c10::SymInt> conv2d_output_sizes(const char* op, const at::Tensor& kind,
                                             c10::SymIntArrayRef input, const at::Tensor& weight,
                                             const Conv2dParams& p) {
  check_rank(op, "weight", weight, 4);
  check_pair(op, "stride", p.stride, 1);
  check_pair(op, "padding", p.padding, 0);
  check_pair(op, "dilation", p.dilation, 1);
  check_parameter(op, kind, "weight", weight);
  TORCH_CHECK(p.groups >= 1, "cnnfast::", op, ": groups must be at least 1, not ", p.groups);
  const auto in_channels = input[1], out_channels = weight.sym_size(0);
  TORCH_CHECK(in_channels > 0 && out_channels > 0, "cnnfast::", op, ": input ", input, " and weight ",
              weight.sym_sizes(), " must have channels");
  TORCH_CHECK(in_channels == weight.sym_size(1) * p.groups, "cnnfast::", op, ": input has ", in_channels,
              " channels, but weight ", weight.sym_sizes(), " with groups=", p.groups, " needs ",
              weight.sym_size(1) * p.groups);
  TORCH_CHECK(out_channels % p.groups == 0, "cnnfast::", op, ": the ", out_channels,
              " output channels of weight ", weight.sym_sizes(), " are not divisible by groups=", p.groups);
  std::vector<c10::SymInt> sizes{input[0], out_channels};
  for (int i = 0; i < 2; ++i) {
    const auto size = input[2 + i];
    const int64_t kernel = weight.sym_size(2 + i).guard_int(__FILE__, __LINE__);
    TORCH_CHECK(size > 0 && kernel > 0, "cnnfast::", op, ": input ", input, " and weight ",
                weight.sym_sizes(), " must not have an empty height or width");
    TORCH_CHECK(size + 2 * p.padding[i] >= p.dilation[i] * (kernel - 1) + 1, "cnnfast::", op, ": weight ",
                weight.sym_sizes(), " with dilation ", p.dilation, " is larger than input ", input,
                " with padding ", p.padding);
    sizes.push_back(conv_output_size(size, kernel, p.stride[i], p.padding[i], p.dilation[i]));
  }
  return sizes;
}

std::vector<c10::SymInt> check_conv2d(const char* op, const Conv2dArgs& a) {
  auto sizes = check_conv2d_geometry(op, a.input, a.weight, a.params);
  check_parameter(op, a.input, "bias", a.bias);
  check_same_kind(op, a.input, "scale", a.scale);
  check_same_kind(op, a.input, "residual", a.residual);
  check_per_channel(op, "bias", a.bias, sizes[1]);
  check_per_channel(op, "scale", a.scale, sizes[1]);
  if (present(a.residual))
    TORCH_CHECK(a.residual->sym_sizes() == c10::SymIntArrayRef(sizes), "cnnfast::", op,
                ": residual has shape ", a.residual->sym_sizes(), ", but the output has ",
                c10::SymIntArrayRef(sizes));
  parse_activation(op, a.activation);
  return sizes;
}

at::Tensor conv2d_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& scale, const OptionalTensor& residual,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                            int64_t groups, std::string_view activation) {
  check_conv2d("conv2d",
               {input, weight, bias, scale, residual, {stride, padding, dilation, groups}, activation});
  const auto type = input.scalar_type();
  const OptionalTensor shift = as_type(bias, type);
  const bool bias_inside = !present(scale);
  at::Tensor y = at::conv2d(input, as_type(weight, type), bias_inside ? shift : OptionalTensor(), stride,
                            padding, dilation, groups);
  if (!bias_inside) {
    y = y * scale->view({-1, 1, 1});
    if (present(bias)) y = y + shift->view({-1, 1, 1});
  }
  if (present(residual)) y = y + *residual;
  return own_channels_last(activate(y, parse_activation("conv2d", activation)));
}

Conv2dGradients conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const OptionalTensor& scale,
                                const at::Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                                std::array<bool, 5> output_mask) {
  const auto [need_input, need_weight, need_bias, need_scale, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const at::Tensor grad =
      activation_backward(grad_output, output, parse_activation("conv2d_backward", activation));
  const at::Tensor conv_grad = present(scale) ? grad * scale->view({-1, 1, 1}) : grad;
  const Conv2dParams params{stride, padding, dilation, groups};
  auto [grad_input, grad_weight, unused] =
      conv_gradients(conv_grad, input, weight, params, {need_input, need_weight && !need_scale, false});
  at::Tensor grad_scale;
  if (need_scale) {
    // The unscaled convolution is linear in its weight: its product with the gradient, summed over pixels, is
    // the product of the weight with the weight's gradient. No convolution output needs to be kept.
    const at::Tensor unscaled = conv_gradients(grad, input, weight, params, {false, true, false}).weight;
    grad_scale = (unscaled * weight).sum({1, 2, 3});
    if (need_weight) grad_weight = unscaled * scale->view({-1, 1, 1, 1});
  }
  return {need_input ? grad_input : none(), need_weight ? grad_weight : none(),
          need_bias ? as_type(grad.sum({0, 2, 3}), weight.scalar_type()) : none(),
          need_scale ? grad_scale : none(),
          need_residual ? (grad.is_same(grad_output) ? grad.clone() : grad) : none()};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("conv2d", TORCH_FN(conv2d_composite));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward));
}

}  // namespace cnnfast
