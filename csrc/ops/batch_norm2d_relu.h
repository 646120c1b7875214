// batch_norm2d with ReLU that gives one bit per value for its gradient, in place of the output: what autograd
// runs on GPUs, where reading the output again costs sixteen or thirty-two times as much.
#pragma once
#include "ops/batch_norm2d.h"

namespace cnnfast {

// Output, mean, var, bits.
using BatchNorm2dReluOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// Of input, weight, bias, residual.
using BatchNorm2dReluGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// How many bytes the bits of a batch of images take.
c10::SymInt bytes_of_bits(const at::Tensor& images);

void check_batch_norm2d_relu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& mean, const at::Tensor& var,
                                      const OptionalTensor& weight, const at::Tensor& positive);

BatchNorm2dReluOutputs batch_norm2d_relu_composite(const at::Tensor& input, const OptionalTensor& weight,
                                                   const OptionalTensor& bias, const OptionalTensor& residual,
                                                   double eps);
BatchNorm2dReluGradients batch_norm2d_relu_backward_composite(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
    const OptionalTensor& weight, const at::Tensor& positive, double eps, std::array<bool, 4> output_mask);

// Output and bits of an image whose statistics are known.
std::tuple<at::Tensor, at::Tensor> batch_norm_act_bits_composite(
    const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& residual, double eps);

// Output, the convolution's own output, its mean and biased variance, bits.
using ConvBatchNormReluOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// By ATen alone.
ConvBatchNormReluOutputs conv2d_batch_norm_relu_composite(
    const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& residual, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, double eps);
// By the operators conv2d and batch_norm2d_relu.
ConvBatchNormReluOutputs conv2d_batch_norm_relu_by_two(const at::Tensor& input, const at::Tensor& weight,
                                                       const OptionalTensor& bn_weight,
                                                       const OptionalTensor& bn_bias,
                                                       const OptionalTensor& residual, at::IntArrayRef stride,
                                                       at::IntArrayRef padding, at::IntArrayRef dilation,
                                                       int64_t groups, double eps);

}  // namespace cnnfast
