#include "ops/linear.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {

std::vector<c10::SymInt> check_linear(const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& bias, std::string_view activation) {
  constexpr const char* op = "linear";
  TORCH_CHECK(input.dim() >= 1, "cnnfast::linear: input must have at least one dimension, not shape ",
              input.sym_sizes());
  check_rank(op, "weight", weight, 2);
  check_same_kind(op, input, "weight", weight);
  check_same_kind(op, input, "bias", bias);
  TORCH_CHECK(input.sym_size(-1) == weight.sym_size(1), "cnnfast::linear: input ", input.sym_sizes(), " has ",
              input.sym_size(-1), " features, but weight ", weight.sym_sizes(), " needs ",
              weight.sym_size(1));
  TORCH_CHECK(weight.sym_size(0) > 0 && weight.sym_size(1) > 0, "cnnfast::linear: weight ",
              weight.sym_sizes(), " must not be empty");
  check_per_channel(op, "bias", bias, weight.sym_size(0));
  parse_activation(op, activation);
  auto sizes = input.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return sizes;
}

at::Tensor linear_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation) {
  check_linear(input, weight, bias, activation);
  return activate(at::linear(input, weight, bias), parse_activation("linear", activation)).contiguous();
}

LinearGradients linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const at::Tensor& output,
                                std::string_view activation, std::array<bool, 3> output_mask) {
  const auto [need_input, need_weight, need_bias] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const at::Tensor grad =
      activation_backward(grad_output, output, parse_activation("linear_backward", activation));
  const at::Tensor rows = grad.reshape_symint({-1, weight.sym_size(0)});
  return {need_input ? at::matmul(grad, weight) : none(),
          need_weight ? at::mm(rows.t(), input.reshape_symint({-1, weight.sym_size(1)})) : none(),
          need_bias ? rows.sum(0) : none()};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("linear", TORCH_FN(linear_composite));
  m.impl("linear_backward", TORCH_FN(linear_backward));
}

}  // namespace cnnfast
