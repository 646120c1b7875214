// bn_act_conv2d: batch normalisation and activation on the way into a convolution.
#pragma once
#include "ops/batch_norm2d.h"

namespace cnnfast {

struct BnActConv2dArgs {
  const at::Tensor& input;
  const at::Tensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& bn_weight;
  const OptionalTensor& bn_bias;
  const OptionalTensor& mean;
  const OptionalTensor& var;
  const OptionalTensor& residual;
  Conv2dParams params;
  std::string_view pre_activation;
};

std::vector<c10::SymInt> check_bn_act_conv2d(const BnActConv2dArgs& args);

BatchNorm2dOutputs bn_act_conv2d_composite(const at::Tensor& input, const at::Tensor& weight,
                                           const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                           const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                           const OptionalTensor& var, const OptionalTensor& residual,
                                           at::IntArrayRef stride, at::IntArrayRef padding,
                                           at::IntArrayRef dilation, int64_t groups, double eps,
                                           std::string_view pre_activation);

BatchNormGradients bn_act_conv2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                    const at::Tensor& weight, const OptionalTensor& bn_weight,
                                                    const OptionalTensor& bn_bias, const at::Tensor& mean,
                                                    const at::Tensor& var, at::IntArrayRef stride,
                                                    at::IntArrayRef padding, at::IntArrayRef dilation,
                                                    int64_t groups, double eps,
                                                    std::string_view pre_activation, bool batch_statistics,
                                                    std::array<bool, 6> output_mask);

// The steps of the backward that have kernels of their own on some devices.
struct BnActConv2dSteps {
  decltype(batch_norm_act_composite)* normalise;
  // It may write over the gradient that it is given.
  decltype(batch_norm2d_backward_composite)* normalise_backward;
};

// Gradients of input, weight, bias, bn_weight, bn_bias, residual. The activated input is computed again: it
// is as large as the input, and was never a tensor in the forward pass.
BatchNormGradients bn_act_conv2d_backward(const BnActConv2dSteps& steps, const at::Tensor& grad_output,
                                          const at::Tensor& input, const at::Tensor& weight,
                                          const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                          const at::Tensor& mean, const at::Tensor& var,
                                          const Conv2dParams& params, double eps,
                                          std::string_view pre_activation, bool batch_statistics,
                                          std::array<bool, 6> output_mask);

}  // namespace cnnfast
