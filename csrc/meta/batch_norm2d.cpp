// Shapes and strides of batch_norm2d, batch_norm2d_relu and bn_act_conv2d, without data.
#include "ops/batch_norm2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "ops/batch_norm2d_relu.h"
#include "ops/bn_act_conv2d.h"

namespace cnnfast {
namespace {

at::Tensor channels_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty_symint(sizes, options, at::MemoryFormat::ChannelsLast);
}

at::Tensor channel_gradient(bool wanted, const c10::SymInt& channels, const at::TensorOptions& options) {
  return at::empty_symint({wanted ? channels : c10::SymInt(0)}, options);
}

at::Tensor image_gradient(bool wanted, const at::Tensor& images) {
  return wanted ? channels_last(images.sym_sizes(), images.options()) : no_gradient(images);
}

// Gradients that nobody wants are empty tensors of the input's type.
at::TensorOptions parameter_options(bool wanted, const OptionalTensor& parameter, const at::Tensor& input) {
  if (!wanted) return input.options();
  return input.options().dtype(present(parameter) ? parameter->scalar_type()
                                                  : statistics_type(input.scalar_type()));
}

BatchNorm2dOutputs batch_norm2d_meta(const at::Tensor& input, const OptionalTensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& residual, double,
                                     std::string_view activation) {
  check_batch_norm2d(input, weight, bias, residual, activation);
  const auto statistics = input.options().dtype(statistics_type(input.scalar_type()));
  return {channels_last(input.sym_sizes(), input.options()),
          at::empty_symint({input.sym_size(1)}, statistics),
          at::empty_symint({input.sym_size(1)}, statistics)};
}

BatchNormGradients batch_norm2d_backward_meta(const at::Tensor&, const at::Tensor& input,
                                              const at::Tensor& mean, const at::Tensor& var,
                                              const OptionalTensor& weight, const at::Tensor&, double,
                                              std::string_view, bool, std::array<bool, 6> mask) {
  const auto channels = input.sym_size(1);
  return {image_gradient(mask[0], input),
          channel_gradient(mask[1], channels, mask[1] ? mean.options() : input.options()),
          channel_gradient(mask[2], channels, mask[2] ? var.options() : input.options()),
          channel_gradient(mask[3], channels, parameter_options(mask[3], weight, input)),
          channel_gradient(mask[4], channels, parameter_options(mask[4], weight, input)),
          image_gradient(mask[5], input)};
}

BatchNorm2dReluOutputs batch_norm2d_relu_meta(const at::Tensor& input, const OptionalTensor& weight,
                                              const OptionalTensor& bias, const OptionalTensor& residual,
                                              double eps) {
  const auto [output, mean, var] = batch_norm2d_meta(input, weight, bias, residual, eps, "relu");
  return {output, mean, var, at::empty_symint({bytes_of_bits(input)}, input.options().dtype(at::kByte))};
}

BatchNorm2dReluGradients batch_norm2d_relu_backward_meta(const at::Tensor&, const at::Tensor& input,
                                                         const at::Tensor&, const at::Tensor&,
                                                         const OptionalTensor& weight, const at::Tensor&,
                                                         double, std::array<bool, 4> mask) {
  const auto channels = input.sym_size(1);
  return {image_gradient(mask[0], input),
          channel_gradient(mask[1], channels, parameter_options(mask[1], weight, input)),
          channel_gradient(mask[2], channels, parameter_options(mask[2], weight, input)),
          image_gradient(mask[3], input)};
}

ConvBatchNormReluOutputs conv2d_batch_norm_relu_meta(const at::Tensor& input, const at::Tensor& weight,
                                                     const OptionalTensor& bn_weight,
                                                     const OptionalTensor& bn_bias,
                                                     const OptionalTensor& residual, at::IntArrayRef stride,
                                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                                     int64_t groups, double eps) {
  const OptionalTensor none;
  const auto sizes = check_conv2d_batch_norm(
      {input, weight, none, bn_weight, bn_bias, residual, {stride, padding, dilation, groups}, eps, "relu"});
  const at::Tensor conv = channels_last(sizes, input.options());
  const auto [output, mean, var, positive] = batch_norm2d_relu_meta(conv, bn_weight, bn_bias, residual, eps);
  return {output, conv, mean, var, positive};
}

BatchNorm2dOutputs bn_act_conv2d_meta(const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                      const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                      const OptionalTensor& var, const OptionalTensor& residual,
                                      at::IntArrayRef stride, at::IntArrayRef padding,
                                      at::IntArrayRef dilation, int64_t groups, double,
                                      std::string_view pre_activation) {
  const auto sizes = check_bn_act_conv2d({input,
                                          weight,
                                          bias,
                                          bn_weight,
                                          bn_bias,
                                          mean,
                                          var,
                                          residual,
                                          {stride, padding, dilation, groups},
                                          pre_activation});
  const at::Tensor output = channels_last(sizes, input.options());
  if (present(mean)) return {output, no_gradient(*mean), no_gradient(*var)};
  const auto statistics = input.options().dtype(statistics_type(input.scalar_type()));
  return {output, at::empty_symint({input.sym_size(1)}, statistics),
          at::empty_symint({input.sym_size(1)}, statistics)};
}

BatchNormGradients bn_act_conv2d_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& weight, const OptionalTensor& bn_weight,
                                               const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                                               at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
                                               double, std::string_view, bool, std::array<bool, 6> mask) {
  const auto channels = input.sym_size(1);
  return {image_gradient(mask[0], input),
          mask[1] ? at::empty_like(weight) : no_gradient(input),
          channel_gradient(mask[2], weight.sym_size(0), input.options()),
          channel_gradient(mask[3], channels, parameter_options(mask[3], bn_weight, input)),
          channel_gradient(mask[4], channels, parameter_options(mask[4], bn_weight, input)),
          image_gradient(mask[5], grad_output)};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("batch_norm2d", TORCH_FN(batch_norm2d_meta));
  m.impl("batch_norm2d_backward", TORCH_FN(batch_norm2d_backward_meta));
  m.impl("batch_norm2d_relu", TORCH_FN(batch_norm2d_relu_meta));
  m.impl("conv2d_batch_norm_relu", TORCH_FN(conv2d_batch_norm_relu_meta));
  m.impl("batch_norm2d_relu_backward", TORCH_FN(batch_norm2d_relu_backward_meta));
  m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d_meta));
  m.impl("bn_act_conv2d_backward", TORCH_FN(bn_act_conv2d_backward_meta));
}

}  // namespace cnnfast
