// linear: act(input @ weight.T + bias)
#pragma once
#include "ops/common.h"

namespace cnnfast {

// The output's sizes.
std::vector<c10::SymInt> check_linear(const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& bias, std::string_view activation);
at::Tensor linear_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation);

// Gradients of input, weight and bias; output_mask says which are wanted.
using LinearGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
LinearGradients linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const at::Tensor& output,
                                std::string_view activation, std::array<bool, 3> output_mask);

}  // namespace cnnfast
