#include "ops/bn_act_conv2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/conv_gradients.h"

namespace cnnfast {
namespace {

constexpr const char* kOp = "bn_act_conv2d";

// A convolution's gradient comes in whatever layout its backend likes; an operator's has to be foreseeable.
at::Tensor in_layout_of(const at::Tensor& weight, const at::Tensor& gradient) {
  const at::Tensor result = at::empty_like(weight);
  return result.strides() == gradient.strides() ? gradient : result.copy_(gradient);
}

}  // namespace

std::vector<c10::SymInt> check_bn_act_conv2d(const BnActConv2dArgs& a) {
  auto sizes = check_conv2d_geometry(kOp, a.input, a.weight, a.params);
  TORCH_CHECK(at::isFloatingType(a.input.scalar_type()), "cnnfast::", kOp,
              ": input must be of a floating-point type, not ", a.input.scalar_type());
  check_parameter(kOp, a.input, "bias", a.bias);
  check_per_channel(kOp, "bias", a.bias, sizes[1]);
  const auto in_channels = a.input.sym_size(1);
  check_statistic(kOp, "bn_weight", a.bn_weight, a.input, in_channels);
  check_statistic(kOp, "bn_bias", a.bn_bias, a.input, in_channels);
  TORCH_CHECK(present(a.mean) == present(a.var), "cnnfast::", kOp,
              ": mean and var must be given both or neither");
  check_statistic(kOp, "mean", a.mean, a.input, in_channels);
  check_statistic(kOp, "var", a.var, a.input, in_channels);
  check_same_kind(kOp, a.input, "residual", a.residual);
  if (present(a.residual))
    TORCH_CHECK(a.residual->sym_sizes() == c10::SymIntArrayRef(sizes), "cnnfast::", kOp,
                ": residual has shape ", a.residual->sym_sizes(), ", but the output has ",
                c10::SymIntArrayRef(sizes));
  if (!present(a.mean)) check_several_values(kOp, a.input);
  check_pre_activation(kOp, a.pre_activation);
  return sizes;
}

BatchNorm2dOutputs bn_act_conv2d_composite(const at::Tensor& input, const at::Tensor& weight,
                                           const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                           const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                           const OptionalTensor& var, const OptionalTensor& residual,
                                           at::IntArrayRef stride, at::IntArrayRef padding,
                                           at::IntArrayRef dilation, int64_t groups, double eps,
                                           std::string_view pre_activation) {
  check_bn_act_conv2d({input,
                       weight,
                       bias,
                       bn_weight,
                       bn_bias,
                       mean,
                       var,
                       residual,
                       {stride, padding, dilation, groups},
                       pre_activation});
  const auto [m, v] = present(mean) ? std::tuple(*mean, *var) : batch_statistics_composite(input);
  const at::Tensor activated =
      batch_norm_act_composite(input, m, v, bn_weight, bn_bias, std::nullopt, eps, pre_activation);
  const auto type = activated.scalar_type();
  at::Tensor y =
      at::conv2d(activated, as_type(weight, type), as_type(bias, type), stride, padding, dilation, groups);
  if (present(residual)) y = y + *residual;
  if (present(mean)) return {own_channels_last(y), no_gradient(*mean), no_gradient(*var)};
  return {own_channels_last(y), m, v};
}

BatchNormGradients bn_act_conv2d_backward(const BnActConv2dSteps& steps, const at::Tensor& grad_output,
                                          const at::Tensor& input, const at::Tensor& weight,
                                          const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                          const at::Tensor& mean, const at::Tensor& var,
                                          const Conv2dParams& p, double eps, std::string_view pre_activation,
                                          bool batch_statistics, std::array<bool, 6> output_mask) {
  const auto [need_input, need_weight, need_bias, need_bn_weight, need_bn_bias, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const bool need_activated = need_input || need_bn_weight || need_bn_bias;
  at::Tensor grad_activated, grad_weight;
  BatchNormGradients norm;
  if (need_activated || need_weight) {
    const at::Tensor activated =
        steps.normalise(input, mean, var, bn_weight, bn_bias, std::nullopt, eps, pre_activation);
    const auto gradients =
        conv_gradients(grad_output, activated, weight, p, {need_activated, need_weight, false});
    grad_activated = gradients.input;
    grad_weight = gradients.weight;
    if (need_activated)
      norm = steps.normalise_backward(grad_activated, input, mean, var, bn_weight, activated, eps,
                                      pre_activation, batch_statistics,
                                      {need_input, false, false, need_bn_weight, need_bn_bias, false});
  }
  return {need_input ? std::get<0>(norm) : none(),
          need_weight ? in_layout_of(weight, grad_weight) : none(),
          need_bias ? as_type(grad_output.sum({0, 2, 3}), weight.scalar_type()) : none(),
          need_bn_weight ? std::get<3>(norm) : none(),
          need_bn_bias ? std::get<4>(norm) : none(),
          need_residual ? fresh_channels_last(grad_output) : none()};
}

BatchNormGradients bn_act_conv2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                    const at::Tensor& weight, const OptionalTensor& bn_weight,
                                                    const OptionalTensor& bn_bias, const at::Tensor& mean,
                                                    const at::Tensor& var, at::IntArrayRef stride,
                                                    at::IntArrayRef padding, at::IntArrayRef dilation,
                                                    int64_t groups, double eps,
                                                    std::string_view pre_activation, bool batch_statistics,
                                                    std::array<bool, 6> output_mask) {
  return bn_act_conv2d_backward({batch_norm_act_composite, batch_norm2d_backward_composite}, grad_output,
                                input, weight, bn_weight, bn_bias, mean, var,
                                {stride, padding, dilation, groups}, eps, pre_activation, batch_statistics,
                                output_mask);
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d_composite));
  m.impl("bn_act_conv2d_backward", TORCH_FN(bn_act_conv2d_backward_composite));
}

}  // namespace cnnfast
