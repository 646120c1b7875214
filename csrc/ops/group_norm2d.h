// group_norm2d: every image's own statistics, over the pixels and channels of a group.
#pragma once
#include "ops/batch_norm.h"

namespace cnnfast {

// Output, mean, biased variance; the last two N x groups, in statistics_type.
using GroupNorm2dOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
// Of input, weight, bias.
using GroupNorm2dGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_group_norm2d(const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                        const OptionalTensor& bias, std::string_view activation);
void check_group_norm2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& mean, const at::Tensor& var, int64_t groups,
                                 const OptionalTensor& weight, const OptionalTensor& bias);

GroupNorm2dOutputs group_norm2d_composite(const at::Tensor& input, int64_t groups,
                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                          double eps, std::string_view activation);
GroupNorm2dGradients group_norm2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                     const at::Tensor& mean, const at::Tensor& var,
                                                     int64_t groups, const OptionalTensor& weight,
                                                     const OptionalTensor& bias, double eps,
                                                     std::string_view activation,
                                                     std::array<bool, 3> output_mask);

}  // namespace cnnfast
