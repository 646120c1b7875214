// conv2d_batch_norm and bn_act_conv2d on CUDA tensors: convolutions by convolution.h, normalisation by the
// kernels.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/batch_norm_tensors.h"
#include "cuda/convolution.h"
#include "cuda/tensors.h"
#include "ops/bn_act_conv2d.h"
#include "ops/conv_gradients.h"
#include "ops/device_kernel.h"

namespace cnnfast::cuda {
namespace {

std::vector<int64_t> plain(const std::vector<c10::SymInt>& sizes) {
  std::vector<int64_t> result;
  for (const auto& size : sizes) result.push_back(size.expect_int());
  return result;
}

bool served_output(at::IntArrayRef sizes) {
  return sizes[0] * sizes[2] * sizes[3] <= INT32_MAX && sizes[1] <= kMostChannels;
}

BatchNormOutputs conv2d_batch_norm(const at::Tensor& input, const at::Tensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                   const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                   int64_t groups, double eps, std::string_view activation) {
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto sizes = plain(
      check_conv2d_batch_norm({input, weight, bias, bn_weight, bn_bias, residual, params, eps, activation}));
  const Activation act = parse_activation("conv2d_batch_norm", activation);
  if (!served(input) || !served_output(sizes) || !has_kernel(act) || input.numel() == 0) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  const OptionalTensor none;
  const at::Tensor conv = conv2d_images({input, weight, none, none, none, params, "none"});
  const Statistics s = batch_statistics(conv);
  at::Tensor output = empty_images(sizes, input);
  normalise_into(conv, Normalisation(s.mean, s.var, bn_weight, bn_bias, eps), residual, act, output);
  return {output, conv, present(bias) ? s.mean + as_type(*bias, at::kFloat) : s.mean, s.var};
}

BatchNormGradients conv2d_batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& weight, const OptionalTensor& bn_weight,
                                              const at::Tensor& conv_output, const at::Tensor& conv_mean,
                                              const at::Tensor& var, const at::Tensor& output,
                                              at::IntArrayRef stride, at::IntArrayRef padding,
                                              at::IntArrayRef dilation, int64_t groups, double eps,
                                              std::string_view activation, std::array<bool, 6> output_mask) {
  const auto [need_input, need_weight, need_bias, need_bn_weight, need_bn_bias, need_residual] = output_mask;
  if (!served(conv_output) || !served_with(conv_output, input)) throw Unserved();
  const auto none = [&] { return no_gradient(input); };
  const bool need_conv = need_input || need_weight;
  const auto norm = cuda::batch_norm2d_backward(
      grad_output, conv_output, conv_mean, var, bn_weight, output, eps, activation, true,
      {need_conv, false, false, need_bn_weight, need_bn_bias, need_residual});
  const auto conv = conv_gradients(std::get<0>(norm), input, weight, {stride, padding, dilation, groups},
                                   {need_input, need_weight, false});
  return {need_input ? conv.input : none(), need_weight ? conv.weight : none(),
          // The mean takes any bias away again: its gradient is zero, not merely small.
          need_bias ? at::zeros_like(conv_mean, input.options()) : none(), std::get<3>(norm),
          std::get<4>(norm), std::get<5>(norm)};
}

BatchNorm2dOutputs bn_act_conv2d(const at::Tensor& input, const at::Tensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                 const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                 const OptionalTensor& var, const OptionalTensor& residual,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, double eps, std::string_view pre_activation) {
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto sizes = plain(check_bn_act_conv2d(
      {input, weight, bias, bn_weight, bn_bias, mean, var, residual, params, pre_activation}));
  const Activation act = parse_activation("bn_act_conv2d", pre_activation);
  if (!served(input) || !served_output(sizes) || !has_kernel(act)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  const bool given = present(mean);
  const OptionalTensor none;
  const at::Tensor x = with_pixels(input);
  const Statistics s = given ? Statistics{*mean, *var} : batch_statistics(x);
  const at::Tensor activated = empty_images(input.sizes(), input);
  normalise_into(x, Normalisation(s.mean, s.var, bn_weight, bn_bias, eps), std::nullopt, act, activated);
  const at::Tensor output = conv2d_images({activated, weight, bias, none, residual, params, "none"});
  if (given) return {output, no_gradient(*mean), no_gradient(*var)};
  return {output, s.mean, s.var};
}

BatchNormGradients bn_act_conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                          const at::Tensor& weight, const OptionalTensor& bn_weight,
                                          const OptionalTensor& bn_bias, const at::Tensor& mean,
                                          const at::Tensor& var, at::IntArrayRef stride,
                                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                          double eps, std::string_view pre_activation, bool batch_statistics,
                                          std::array<bool, 6> output_mask) {
  if (!served(input)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  return cnnfast::bn_act_conv2d_backward(
      {cuda::batch_norm_act, cuda::batch_norm2d_backward}, grad_output, input, weight, bn_weight, bn_bias,
      mean, var, {stride, padding, dilation, groups}, eps, pre_activation, batch_statistics, output_mask);
}

[[maybe_unused]] const bool registered[] = {
    DeviceKernel<conv2d_batch_norm_composite>::set(conv2d_batch_norm),
    DeviceKernel<conv2d_batch_norm_backward_composite>::set(conv2d_batch_norm_backward),
    DeviceKernel<bn_act_conv2d_composite>::set(bn_act_conv2d),
    DeviceKernel<bn_act_conv2d_backward_composite>::set(bn_act_conv2d_backward)};

}  // namespace
}  // namespace cnnfast::cuda
