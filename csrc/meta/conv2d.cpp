// Shapes and strides of conv2d and conv2d_batch_norm, without data.
#include "ops/conv2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "ops/batch_norm.h"

namespace cnnfast {
namespace {

at::Tensor channels_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty_symint(sizes, options, at::MemoryFormat::ChannelsLast);
}

at::Tensor conv2d_meta(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& scale, const OptionalTensor& residual, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                       std::string_view activation) {
  return channels_last(
      check_conv2d("conv2d",
                   {input, weight, bias, scale, residual, {stride, padding, dilation, groups}, activation}),
      input.options());
}

at::Tensor gradient_like(bool wanted, const at::Tensor& t) {
  return wanted ? at::empty_like(t) : no_gradient(t);
}

at::Tensor channel_gradient(bool wanted, const at::Tensor& weight, const at::TensorOptions& options) {
  return wanted ? at::empty_symint({weight.sym_size(0)}, options) : at::empty({0}, options);
}

Conv2dGradients conv2d_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& weight, const OptionalTensor&, const at::Tensor&,
                                     at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
                                     std::string_view, std::array<bool, 5> mask) {
  return {gradient_like(mask[0], input), gradient_like(mask[1], weight),
          channel_gradient(mask[2], weight, weight.options()),
          channel_gradient(mask[3], weight, input.options()), gradient_like(mask[4], grad_output)};
}

BatchNormOutputs conv2d_batch_norm_meta(const at::Tensor& input, const at::Tensor& weight,
                                        const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                        const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                        at::IntArrayRef stride, at::IntArrayRef padding,
                                        at::IntArrayRef dilation, int64_t groups, double eps,
                                        std::string_view activation) {
  const auto sizes = check_conv2d_batch_norm({input,
                                              weight,
                                              bias,
                                              bn_weight,
                                              bn_bias,
                                              residual,
                                              {stride, padding, dilation, groups},
                                              eps,
                                              activation});
  const auto statistics = input.options().dtype(statistics_type(input.scalar_type()));
  return {channels_last(sizes, input.options()), channels_last(sizes, input.options()),
          at::empty_symint({sizes[1]}, statistics), at::empty_symint({sizes[1]}, statistics)};
}

BatchNormGradients conv2d_batch_norm_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& weight, const OptionalTensor& bn_weight,
                                                   const at::Tensor&, const at::Tensor&,
                                                   const at::Tensor& var, const at::Tensor&, at::IntArrayRef,
                                                   at::IntArrayRef, at::IntArrayRef, int64_t, double,
                                                   std::string_view, std::array<bool, 6> mask) {
  const auto parameters = present(bn_weight) ? bn_weight->options() : var.options();
  return {gradient_like(mask[0], input),
          gradient_like(mask[1], weight),
          channel_gradient(mask[2], weight, weight.options()),
          channel_gradient(mask[3], weight, parameters),
          channel_gradient(mask[4], weight, parameters),
          gradient_like(mask[5], grad_output)};
}

at::Tensor conv2d_input_grad_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight, {stride, padding, dilation, groups});
  return at::empty_like(input);
}

at::Tensor conv2d_weight_grad_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                   const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                   at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight,
                        {stride, padding, dilation, groups});
  return at::empty_like(weight);
}

at::Tensor batch_norm_act_meta(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                               const OptionalTensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, double, std::string_view activation) {
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  return channels_last(input.sym_sizes(), input.options());
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("conv2d", TORCH_FN(conv2d_meta));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_meta));
  m.impl("conv2d_input_grad", TORCH_FN(conv2d_input_grad_meta));
  m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad_meta));
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm_meta));
  m.impl("conv2d_batch_norm_backward", TORCH_FN(conv2d_batch_norm_backward_meta));
  m.impl("batch_norm_act", TORCH_FN(batch_norm_act_meta));
}

}  // namespace cnnfast
