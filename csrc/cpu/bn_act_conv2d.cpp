// bn_act_conv2d on the CPU: normalised and activated while the convolution's input is brought into memory.
#include "ops/bn_act_conv2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/normalise.h"
#include "cpu/normalise_backward.h"
#include "cpu/paired_conv.h"
#include "cpu/planes.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

BatchNorm2dOutputs bn_act_conv2d_cpu(const at::Tensor& input, const at::Tensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                     const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                     const OptionalTensor& var, const OptionalTensor& residual,
                                     at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, int64_t groups, double eps,
                                     std::string_view pre_activation) {
  if (!takes_widened(input) && !all_float(input, {bn_weight, bn_bias, mean, var}))
    return bn_act_conv2d_composite(input, weight, bias, bn_weight, bn_bias, mean, var, residual, stride,
                                   padding, dilation, groups, eps, pre_activation);
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto sizes = check_bn_act_conv2d(
      {input, weight, bias, bn_weight, bn_bias, mean, var, residual, params, pre_activation});
  const bool given = present(mean);
  // Where channels are not adjacent the one copy serves the statistics and the convolution.
  const at::Tensor images = channels_adjacent(input) ? input : channels_last_copy(input);
  const Statistics used =
      given ? Statistics{widened(*mean), widened(*var)} : batch_statistics(pixel_rows(images));
  const ScaleShift s = fold(used.mean, used.var, widened(bn_weight), widened(bn_bias), eps);
  if (takes_widened(input) && multiplies_pairs(conv_geometry(input, weight, params, concrete(sizes)))) {
    const at::Tensor activated = batch_norm_act_widened(input, used.mean, used.var, bn_weight, bn_bias,
                                                        std::nullopt, eps, pre_activation);
    const at::Tensor output =
        paired_conv2d({activated, weight, bias, std::nullopt, residual, params, "none"}, sizes);
    if (output.defined())
      return {output, given ? no_gradient(*mean) : used.mean, given ? no_gradient(*var) : used.var};
  }
  const InputPrologue prologue{s.scale.data(), s.shift.data(),
                               parse_activation("bn_act_conv2d", pre_activation)};
  const at::Tensor output = conv2d_in(
      input.scalar_type(), {images, weight, bias, std::nullopt, residual, params, "none"}, sizes, &prologue);
  if (given) return {output, no_gradient(*mean), no_gradient(*var)};
  return {output, used.mean, used.var};
}

// Float32 of bfloat16 images.
at::Tensor normalise_to_float(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                              const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& residual, double eps, std::string_view activation) {
  return normalise(pixel_rows(input), input.sizes(), fold(mean, var, weight, bias, eps), residual,
                   parse_activation("bn_act_conv2d_backward", activation), at::kFloat);
}

BatchNormGradients bn_act_conv2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& weight, const OptionalTensor& bn_weight,
                                              const OptionalTensor& bn_bias, const at::Tensor& mean,
                                              const at::Tensor& var, at::IntArrayRef stride,
                                              at::IntArrayRef padding, at::IntArrayRef dilation,
                                              int64_t groups, double eps, std::string_view pre_activation,
                                              bool batch_statistics, std::array<bool, 6> output_mask) {
  const bool wide = takes_widened(grad_output, {input});
  const auto of_conv = weight.scalar_type();
  const Conv2dParams params{stride, padding, dilation, groups};
  if (wide) check_conv2d_gradient("bn_act_conv2d_backward", grad_output, input, weight, params);
  if (wide && !multiplies_pairs(conv_geometry(input, weight, params, grad_output.sizes()))) {
    const auto type = input.scalar_type();
    const auto of_weight = present(bn_weight) ? bn_weight->scalar_type() : at::kFloat;
    const auto of_bias = present(bn_bias) ? bn_bias->scalar_type() : at::kFloat;
    // The input is read as it is, products are float32.
    return rounded_to({type, of_conv, of_conv, of_weight, of_bias, type},
                      bn_act_conv2d_backward(
                          {normalise_to_float, batch_norm2d_backward_over}, widened_kept(grad_output), input,
                          widened_kept(weight), widened(bn_weight), widened(bn_bias), widened(mean),
                          widened(var), params, eps, pre_activation, batch_statistics, output_mask));
  }
  const bool ours = all_float(input, {grad_output, bn_weight, bn_bias, mean, var});
  const BnActConv2dSteps steps =
      ours   ? BnActConv2dSteps{batch_norm_act_float, batch_norm2d_backward_over}
      : wide ? BnActConv2dSteps{batch_norm_act_widened, batch_norm2d_backward_widened_over}
             : BnActConv2dSteps{batch_norm_act_composite, batch_norm2d_backward_composite};
  return bn_act_conv2d_backward(steps, grad_output, input, weight, bn_weight, bn_bias, mean, var,
                                {stride, padding, dilation, groups}, eps, pre_activation, batch_statistics,
                                output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d_cpu));
  m.impl("bn_act_conv2d_backward", TORCH_FN(bn_act_conv2d_backward_cpu));
}

}  // namespace cnnfast::cpu
