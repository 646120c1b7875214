// batch_norm2d (batch statistics), and the gradient that it shares with batch_norm_act.
#pragma once
#include "ops/batch_norm.h"

namespace cnnfast {

using BatchNorm2dOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_batch_norm2d(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, std::string_view activation);
// Throws a ValueError, as torch.nn.BatchNorm2d does, where `input` has one value per channel alone.
void check_several_values(const char* op, const at::Tensor& input);

// Mean and biased variance of each channel over the batch, in statistics_type.
std::tuple<at::Tensor, at::Tensor> batch_statistics_composite(const at::Tensor& input);

BatchNorm2dOutputs batch_norm2d_composite(const at::Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& residual,
                                          double eps, std::string_view activation);

// Gradients of input, mean, var, weight, bias, residual.
BatchNormGradients batch_norm2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& mean, const at::Tensor& var,
                                                   const OptionalTensor& weight, const at::Tensor& output,
                                                   double eps, std::string_view activation,
                                                   bool batch_statistics, std::array<bool, 6> output_mask);

}  // namespace cnnfast
