#include "ops/batch_norm.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/conv_gradients.h"

namespace cnnfast {
namespace {

constexpr const char* kOp = "conv2d_batch_norm";

at::Tensor per_channel(const at::Tensor& t) { return t.view({-1, 1, 1}); }

}  // namespace

void check_statistic(const char* op, const char* name, const OptionalTensor& t, const at::Tensor& input,
                     const c10::SymInt& channels) {
  if (!present(t)) return;
  check_per_channel(op, name, t, channels);
  TORCH_CHECK(t->device() == input.device(), "cnnfast::", op, ": input is on ", input.device(), ", but ",
              name, " is on ", t->device());
  TORCH_CHECK(
      t->scalar_type() == input.scalar_type() || t->scalar_type() == statistics_type(input.scalar_type()),
      "cnnfast::", op, ": input is ", input.scalar_type(), ", but ", name, " is ", t->scalar_type());
}

at::ScalarType statistics_type(at::ScalarType images) {
  return images == at::kHalf || images == at::kBFloat16 ? at::kFloat : images;
}

std::vector<c10::SymInt> check_conv2d_batch_norm(const ConvBatchNormArgs& a) {
  auto sizes = check_conv2d_geometry(kOp, a.input, a.weight, a.params);
  TORCH_CHECK(at::isFloatingType(a.input.scalar_type()), "cnnfast::", kOp,
              ": input must be of a floating-point type, not ", a.input.scalar_type());
  check_parameter(kOp, a.input, "bias", a.bias);
  check_same_kind(kOp, a.input, "residual", a.residual);
  check_per_channel(kOp, "bias", a.bias, sizes[1]);
  check_statistic(kOp, "bn_weight", a.bn_weight, a.input, sizes[1]);
  check_statistic(kOp, "bn_bias", a.bn_bias, a.input, sizes[1]);
  if (present(a.residual))
    TORCH_CHECK(a.residual->sym_sizes() == c10::SymIntArrayRef(sizes), "cnnfast::", kOp,
                ": residual has shape ", a.residual->sym_sizes(), ", but the output has ",
                c10::SymIntArrayRef(sizes));
  TORCH_CHECK_VALUE(sizes[0] * sizes[2] * sizes[3] != 1, "cnnfast::", kOp,
                    ": batch statistics need more than one value per channel, but the output has shape ",
                    c10::SymIntArrayRef(sizes));
  parse_activation(kOp, a.activation);
  return sizes;
}

void check_batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, std::string_view activation) {
  constexpr const char* op = "batch_norm_act";
  check_rank(op, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", op,
              ": input must be of a floating-point type, not ", input.scalar_type());
  const auto channels = input.sym_size(1);
  check_statistic(op, "mean", mean, input, channels);
  check_statistic(op, "var", var, input, channels);
  check_statistic(op, "weight", weight, input, channels);
  check_statistic(op, "bias", bias, input, channels);
  check_same_kind(op, input, "residual", residual);
  if (present(residual))
    TORCH_CHECK(residual->sym_sizes() == input.sym_sizes(), "cnnfast::", op, ": residual has shape ",
                residual->sym_sizes(), ", but input has ", input.sym_sizes());
  parse_activation(op, activation);
}

at::Tensor batch_norm_act_composite(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& residual, double eps, std::string_view activation) {
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  const auto type = statistics_type(input.scalar_type());
  at::Tensor scale = at::rsqrt(as_type(var, type) + eps);
  if (present(weight)) scale = scale * as_type(*weight, type);
  at::Tensor y = (as_type(input, type) - per_channel(as_type(mean, type))) * per_channel(scale);
  if (present(bias)) y = y + per_channel(as_type(*bias, type));
  if (present(residual)) y = y + as_type(*residual, type);
  y = activate(y, parse_activation("batch_norm_act", activation));
  return own_channels_last(as_type(y, input.scalar_type()));
}

OptionalTensor bias_for_output(const at::Tensor& output) {
  return output.sym_numel() > 0 ? OptionalTensor(output) : OptionalTensor();
}

void check_bias_for_output(const char* op, const at::Tensor& output, const at::Tensor& input,
                           std::string_view activation) {
  if (output_determines(parse_activation(op, activation))) return;
  TORCH_CHECK(
      output.sym_numel() == 0 || (output.dim() == 1 && output.sym_size(0) == input.sym_size(1)),
      "cnnfast::", op, ": activation ", activation,
      " is computed again for its gradient: output must be the norm's bias, one number for each channel of ",
      input.sym_sizes(), ", or empty, not of shape ", output.sym_sizes());
}

at::Tensor norm_activation_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& mean, const at::Tensor& var,
                                    const OptionalTensor& weight, const at::Tensor& output, double eps,
                                    std::string_view activation) {
  const WrittenActivation act = parse_activation(op, activation);
  if (output_determines(act)) return activation_backward(grad_output, output, act);
  check_bias_for_output(op, output, input, activation);
  return gradient_through(
      grad_output,
      batch_norm_act_composite(input, mean, var, weight, bias_for_output(output), std::nullopt, eps, "none"),
      act);
}

BatchNormOutputs conv2d_batch_norm_composite(const at::Tensor& input, const at::Tensor& weight,
                                             const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                             const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                             at::IntArrayRef stride, at::IntArrayRef padding,
                                             at::IntArrayRef dilation, int64_t groups, double eps,
                                             std::string_view activation) {
  check_conv2d_batch_norm({input,
                           weight,
                           bias,
                           bn_weight,
                           bn_bias,
                           residual,
                           {stride, padding, dilation, groups},
                           eps,
                           activation});
  const at::Tensor conv = own_channels_last(at::conv2d(input, as_type(weight, input.scalar_type()),
                                                       std::nullopt, stride, padding, dilation, groups));
  const auto [var, conv_mean] = at::var_mean(as_type(conv, statistics_type(conv.scalar_type())),
                                             at::IntArrayRef({0, 2, 3}), /*correction=*/0);
  const at::Tensor output =
      batch_norm_act_composite(conv, conv_mean, var, bn_weight, bn_bias, residual, eps, activation);
  const at::Tensor mean = present(bias) ? conv_mean + as_type(*bias, conv_mean.scalar_type()) : conv_mean;
  return {output, conv, mean, var};
}

// d/dy of act(bn(conv(x)) + residual): normalisation by the batch's own statistics, which depend on every
// value.
BatchNormGradients conv2d_batch_norm_backward_composite(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const OptionalTensor& bn_weight, const at::Tensor& conv_output, const at::Tensor& conv_mean,
    const at::Tensor& var, const at::Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, double eps, std::string_view activation,
    std::array<bool, 6> output_mask) {
  const auto [need_input, need_weight, need_bias, need_bn_weight, need_bn_bias, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const at::Tensor grad = norm_activation_backward("conv2d_batch_norm_backward", grad_output, conv_output,
                                                   conv_mean, var, bn_weight, output, eps, activation);
  if (grad.sym_numel() == 0)  // ATen would divide by the number of pixels
    return {need_input ? at::zeros_like(input) : none(),
            need_weight ? at::zeros_like(weight) : none(),
            need_bias ? at::zeros_like(conv_mean, weight.options()) : none(),
            need_bn_weight ? at::zeros_like(*bn_weight) : none(),
            need_bn_bias
                ? at::zeros_like(conv_mean, present(bn_weight) ? bn_weight->options() : conv_mean.options())
                : none(),
            need_residual ? grad.clone() : none()};
  const at::Tensor inverse_std = at::rsqrt(var + eps);
  // ATen wants the weight in the type of the statistics; its gradients come in that type.
  const OptionalTensor gamma = present(bn_weight) ? as_type(*bn_weight, var.scalar_type()) : OptionalTensor();
  const auto [grad_conv, grad_bn_weight, grad_bn_bias] = at::native_batch_norm_backward(
      grad, conv_output, gamma, std::nullopt, std::nullopt, conv_mean, inverse_std, /*train=*/true, eps,
      {need_input || need_weight, need_bn_weight, need_bn_bias});
  const auto type = present(bn_weight) ? bn_weight->scalar_type() : var.scalar_type();
  const auto [grad_input, grad_weight, unused] = conv_gradients(
      grad_conv, input, weight, {stride, padding, dilation, groups}, {need_input, need_weight, false});
  return {need_input ? grad_input : none(), need_weight ? grad_weight : none(),
          // The mean takes any bias away again: its gradient is zero, not merely small.
          need_bias ? at::zeros_like(conv_mean, weight.options()) : none(),
          need_bn_weight ? as_type(grad_bn_weight, type) : none(),
          need_bn_bias ? as_type(grad_bn_bias, type) : none(),
          need_residual ? (grad.is_same(grad_output) ? grad.clone() : grad) : none()};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm_composite));
  m.impl("conv2d_batch_norm_backward", TORCH_FN(conv2d_batch_norm_backward_composite));
  m.impl("batch_norm_act", TORCH_FN(batch_norm_act_composite));
}

}  // namespace cnnfast
