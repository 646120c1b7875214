// conv2d_batch_norm, batch_norm_act and batch_norm2d on the CPU: float32 through the kernel table, other
// types through ATen.
#include "ops/batch_norm.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/normalise.h"
#include "cpu/normalise_backward.h"
#include "cpu/paired_conv.h"
#include "cpu/widened.h"
#include "ops/batch_norm2d.h"

namespace cnnfast::cpu {

at::Tensor batch_norm_act_widened(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& residual, double eps, std::string_view activation) {
  return batch_norm_act_float(input, widened(mean), widened(var), widened(weight), widened(bias), residual,
                              eps, activation);
}

namespace {

BatchNormOutputs conv2d_batch_norm_cpu(const at::Tensor& input, const at::Tensor& weight,
                                       const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                       const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                       at::IntArrayRef stride, at::IntArrayRef padding,
                                       at::IntArrayRef dilation, int64_t groups, double eps,
                                       std::string_view activation) {
  const bool wide = takes_widened(input);
  if ((!wide && !all_float(input, {bn_weight, bn_bias})) || input.numel() == 0)
    return conv2d_batch_norm_composite(input, weight, bias, bn_weight, bn_bias, residual, stride, padding,
                                       dilation, groups, eps, activation);
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto sizes =
      check_conv2d_batch_norm({input, weight, bias, bn_weight, bn_bias, residual, params, eps, activation});
  const OptionalTensor none;
  const Conv2dArgs alone{input, weight, none, none, none, params, "none"};
  const auto type = input.scalar_type();
  at::Tensor conv_output = wide ? paired_conv2d(alone, sizes) : at::Tensor();
  // Rounded, as the gradient will read it: it then belongs to what was computed.
  if (!conv_output.defined()) conv_output = conv2d_in(type, alone, sizes);
  const PixelRows rows = pixel_rows(conv_output);
  const auto [mean, var] = batch_statistics(rows);
  const auto scale_shift = fold(mean, var, widened(bn_weight), widened(bn_bias), eps);
  const at::Tensor output = normalise(rows, conv_output.sizes(), scale_shift, residual,
                                      parse_activation("conv2d_batch_norm", activation), type);
  return {output, conv_output, present(bias) ? mean + *bias : mean, var};
}

at::Tensor batch_norm_act_cpu(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                              const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& residual, double eps, std::string_view activation) {
  if (takes_widened(input)) {
    check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
    return batch_norm_act_widened(input, mean, var, weight, bias, residual, eps, activation);
  }
  if (!all_float(input, {mean, var, weight, bias}))
    return batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, activation);
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  return batch_norm_act_float(input, mean, var, weight, bias, residual, eps, activation);
}

BatchNorm2dOutputs batch_norm2d_cpu(const at::Tensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                                    std::string_view activation) {
  if (!takes_widened(input) && !all_float(input, {weight, bias}))
    return batch_norm2d_composite(input, weight, bias, residual, eps, activation);
  check_batch_norm2d(input, weight, bias, residual, activation);
  const PixelRows rows = pixel_rows(input);
  const auto [mean, var] = batch_statistics(rows);
  const auto scale_shift = fold(mean, var, widened(weight), widened(bias), eps);
  const at::Tensor output = normalise(rows, input.sizes(), scale_shift, residual,
                                      parse_activation("batch_norm2d", activation), input.scalar_type());
  return {output, mean, var};
}

BatchNormGradients batch_norm2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                             const at::Tensor& mean, const at::Tensor& var,
                                             const OptionalTensor& weight, const at::Tensor& output,
                                             double eps, std::string_view activation, bool batch_statistics,
                                             std::array<bool, 6> output_mask) {
  check_bias_for_output("batch_norm2d_backward", output, input, activation);
  // Where there is no output, a tensor in its place that always fits.
  const bool again = !output_determines(parse_activation("batch_norm2d_backward", activation));
  const at::Tensor& values = again ? grad_output : output;
  if (takes_widened(grad_output, {input, values}))
    return batch_norm2d_backward_widened(grad_output, input, mean, var, weight, output, eps, activation,
                                         batch_statistics, output_mask);
  const bool ours = all_float(input, {grad_output, mean, var, weight, values});
  return (ours ? batch_norm2d_backward_float : batch_norm2d_backward_composite)(
      grad_output, input, mean, var, weight, output, eps, activation, batch_statistics, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm_cpu));
  m.impl("batch_norm_act", TORCH_FN(batch_norm_act_cpu));
  m.impl("batch_norm2d", TORCH_FN(batch_norm2d_cpu));
  m.impl("batch_norm2d_backward", TORCH_FN(batch_norm2d_backward_cpu));
}

}  // namespace cnnfast::cpu
