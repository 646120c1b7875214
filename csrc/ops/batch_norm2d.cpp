#include "ops/batch_norm2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

constexpr const char* kOp = "batch_norm2d";

}  // namespace

void check_several_values(const char* op, const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.sym_size(0) * input.sym_size(2) * input.sym_size(3) != 1, "cnnfast::", op,
                    ": batch statistics need more than one value per channel, but input has shape ",
                    input.sym_sizes());
}

void check_batch_norm2d(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, std::string_view activation) {
  check_rank(kOp, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", kOp,
              ": input must be of a floating-point type, not ", input.scalar_type());
  check_statistic(kOp, "weight", weight, input, input.sym_size(1));
  check_statistic(kOp, "bias", bias, input, input.sym_size(1));
  check_same_kind(kOp, input, "residual", residual);
  if (present(residual))
    TORCH_CHECK(residual->sym_sizes() == input.sym_sizes(), "cnnfast::", kOp, ": residual has shape ",
                residual->sym_sizes(), ", but input has ", input.sym_sizes());
  check_several_values(kOp, input);
  parse_activation(kOp, activation);
}

std::tuple<at::Tensor, at::Tensor> batch_statistics_composite(const at::Tensor& input) {
  const auto [var, mean] = at::var_mean(as_type(input, statistics_type(input.scalar_type())),
                                        at::IntArrayRef({0, 2, 3}), /*correction=*/0);
  return {mean, var};
}

BatchNorm2dOutputs batch_norm2d_composite(const at::Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& residual,
                                          double eps, std::string_view activation) {
  check_batch_norm2d(input, weight, bias, residual, activation);
  const auto [mean, var] = batch_statistics_composite(input);
  return {batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, activation), mean, var};
}

BatchNormGradients batch_norm2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& mean, const at::Tensor& var,
                                                   const OptionalTensor& weight, const at::Tensor& output,
                                                   double eps, std::string_view activation,
                                                   bool batch_statistics, std::array<bool, 6> output_mask) {
  const auto [need_input, need_mean, need_var, need_weight, need_bias, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const at::Tensor grad = norm_activation_backward("batch_norm2d_backward", grad_output, input, mean, var,
                                                   weight, output, eps, activation);
  // ATen wants parameters in the type of the statistics; their gradients come in that type.
  const auto type = statistics_type(input.scalar_type());
  const at::Tensor center = as_type(mean, type), spread = as_type(var, type);
  const OptionalTensor gamma = present(weight) ? as_type(*weight, type) : OptionalTensor();
  const at::Tensor inverse_std = at::rsqrt(spread + eps);
  const auto [grad_input, grad_weight, grad_bias] =
      input.numel() == 0  // ATen has no kernel for that on GPUs
          ? std::make_tuple(at::zeros_like(input), at::zeros_like(center), at::zeros_like(center))
          : at::native_batch_norm_backward(grad, input, gamma, center, spread, center, inverse_std,
                                           batch_statistics, eps,
                                           {need_input, need_weight || need_var, need_bias || need_mean});
  const at::Tensor slope = present(weight) ? inverse_std * *gamma : inverse_std;
  const auto parameters = present(weight) ? weight->scalar_type() : type;
  return {need_input ? own_channels_last(grad_input) : none(),
          need_mean ? as_type(-slope * grad_bias, mean.scalar_type()) : none(),
          need_var ? as_type(slope * inverse_std * grad_weight * -0.5, var.scalar_type()) : none(),
          need_weight ? as_type(grad_weight, parameters) : none(),
          need_bias ? as_type(grad_bias, parameters) : none(),
          need_residual ? fresh_channels_last(grad) : none()};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("batch_norm2d", TORCH_FN(batch_norm2d_composite));
  m.impl("batch_norm2d_backward", TORCH_FN(batch_norm2d_backward_composite));
}

}  // namespace cnnfast
