// linear: act(input @ weight.T + bias)
#pragma once
#include "ops/common.h"

namespace cnnfast {

// The output's sizes.
std::vector<c10::SymInt> check_linear(const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& bias, std::string_view activation);

// Whether packing weights costs little beside the products, sooner where weights stay in cache: values in
// bfloat16 then multiply as those of convolutions do, and gradients in float32 come from those kernels too.
bool has_many_rows(const at::Tensor& input, const at::Tensor& weight);
// Whether reading the weights takes longer than the products do.
bool has_few_rows(const at::Tensor& input);

at::Tensor linear_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation);

// Gradients of input, weight and bias; output_mask says which are wanted.
using LinearGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
LinearGradients linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const at::Tensor& output,
                                std::string_view activation, std::array<bool, 3> output_mask);

}  // namespace cnnfast
