// conv2d_batch_norm (batch statistics) and batch_norm_act (statistics given).
#pragma once
#include "ops/conv2d.h"

namespace cnnfast {

using BatchNormOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using BatchNormGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct ConvBatchNormArgs {
  const at::Tensor& input;
  const at::Tensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& bn_weight;
  const OptionalTensor& bn_bias;
  const OptionalTensor& residual;
  Conv2dParams params;
  double eps;
  std::string_view activation;
};

// Statistics are float32 where the images are narrower.
at::ScalarType statistics_type(at::ScalarType images);

// One number per channel, in the images' type or that of their statistics; absent tensors pass.
void check_statistic(const char* op, const char* name, const OptionalTensor& t, const at::Tensor& input,
                     const c10::SymInt& channels);

std::vector<c10::SymInt> check_conv2d_batch_norm(const ConvBatchNormArgs& args);
void check_batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, std::string_view activation);

// Activations whose gradient their output does not tell: the gradient operators get the norm's bias in place
// of the output, empty where there is none, and compute what the activation was given again from the norm's
// input. There must have been no residual.
OptionalTensor bias_for_output(const at::Tensor& output);
void check_bias_for_output(const char* op, const at::Tensor& output, const at::Tensor& input,
                           std::string_view activation);
// The gradient in front of the activation.
at::Tensor norm_activation_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& mean, const at::Tensor& var,
                                    const OptionalTensor& weight, const at::Tensor& output, double eps,
                                    std::string_view activation);

BatchNormOutputs conv2d_batch_norm_composite(const at::Tensor& input, const at::Tensor& weight,
                                             const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                             const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                             at::IntArrayRef stride, at::IntArrayRef padding,
                                             at::IntArrayRef dilation, int64_t groups, double eps,
                                             std::string_view activation);
BatchNormGradients conv2d_batch_norm_backward_composite(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const OptionalTensor& bn_weight, const at::Tensor& conv_output, const at::Tensor& conv_mean,
    const at::Tensor& var, const at::Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, double eps, std::string_view activation,
    std::array<bool, 6> output_mask);
at::Tensor batch_norm_act_composite(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& residual, double eps, std::string_view activation);

}  // namespace cnnfast
