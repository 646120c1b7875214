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
  check_parameter(op, input, "weight", weight);
  check_parameter(op, input, "bias", bias);
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

namespace {

c10::SymInt rows_of(const at::Tensor& input) {
  c10::SymInt rows = 1;
  for (int64_t i = 0; i + 1 < input.dim(); ++i) rows = rows * input.sym_size(i);
  return rows;
}

}  // namespace

bool has_many_rows(const at::Tensor& input, const at::Tensor& weight) {
  constexpr int64_t kManyRows = 512, kManyForNearWeights = 128, kNearWeights = 1 << 18;
  const bool near = weight.sym_numel() <= kNearWeights;
  return rows_of(input) >= (near ? kManyForNearWeights : kManyRows);
}
bool has_few_rows(const at::Tensor& input) { return rows_of(input) <= 32; }

at::Tensor linear_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation) {
  check_linear(input, weight, bias, activation);
  const auto type = input.scalar_type();
  return activate(at::linear(input, as_type(weight, type), as_type(bias, type)),
                  parse_activation("linear", activation))
      .contiguous();
}

LinearGradients linear_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const at::Tensor& output,
                                std::string_view activation, std::array<bool, 3> output_mask) {
  const auto [need_input, need_weight, need_bias] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const at::Tensor grad =
      activation_backward(grad_output, output, parse_activation("linear_backward", activation));
  const at::Tensor rows = grad.reshape_symint({-1, weight.sym_size(0)});
  const auto product = [&] { return at::mm(rows.t(), input.reshape_symint({-1, weight.sym_size(1)})); };
  const auto parameters = weight.scalar_type();
  return {need_input ? at::matmul(grad, as_type(weight, grad.scalar_type())) : none(),
          need_weight ? as_type(product(), parameters) : none(),
          need_bias ? as_type(rows.sum(0), parameters) : none()};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("linear", TORCH_FN(linear_composite));
  m.impl("linear_backward", TORCH_FN(linear_backward));
}

}  // namespace cnnfast
