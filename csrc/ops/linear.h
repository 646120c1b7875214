// linear: act(input @ weight.T + bias)
#pragma once
#include "ops/common.h"

namespace cnnfast {

// The output's sizes.
std::vector<c10::SymInt> check_linear(const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& bias, std::string_view activation);
at::Tensor linear_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation);

}  // namespace cnnfast
