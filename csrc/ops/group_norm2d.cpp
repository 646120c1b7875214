#include "ops/group_norm2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

constexpr const char *kOp = "group_norm2d", *kBackward = "group_norm2d_backward";

void check_images(const char* op, const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                  const OptionalTensor& bias) {
  check_rank(op, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", op,
              ": input must be of a floating-point type, not ", input.scalar_type());
  TORCH_CHECK(groups > 0 && input.sym_size(1) % groups == 0, "cnnfast::", op, ": groups=", groups,
              " does not divide the channels of input, which has shape ", input.sym_sizes());
  check_statistic(op, "weight", weight, input, input.sym_size(1));
  check_statistic(op, "bias", bias, input, input.sym_size(1));
}

// Images as N x groups x values of a group, in the type of their statistics.
struct GroupedImages {
  GroupedImages(const at::Tensor& images, int64_t groups)
      : sizes(images.sizes()),
        grouped({sizes[0], groups, sizes[1] / groups * sizes[2] * sizes[3]}),
        type(statistics_type(images.scalar_type())) {}

  at::Tensor join(const at::Tensor& images) const { return as_type(images, type).reshape(grouped); }
  at::Tensor apart(const at::Tensor& values) const { return values.reshape(sizes); }
  at::Tensor of_channels(const at::Tensor& t) const { return as_type(t, type).view({-1, 1, 1}); }
  at::Tensor normalised(const at::Tensor& images, const at::Tensor& mean, const at::Tensor& inverse) const {
    return (join(images) - mean.unsqueeze(2)) * inverse.unsqueeze(2);
  }
  // In front of the activation.
  at::Tensor scaled(const at::Tensor& normalised, const OptionalTensor& weight,
                    const OptionalTensor& bias) const {
    at::Tensor y = apart(normalised);
    if (present(weight)) y = y * of_channels(*weight);
    if (present(bias)) y = y + of_channels(*bias);
    return y;
  }

  at::IntArrayRef sizes;
  std::array<int64_t, 3> grouped;
  at::ScalarType type;
};

}  // namespace

void check_group_norm2d(const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                        const OptionalTensor& bias, std::string_view activation) {
  check_images(kOp, input, groups, weight, bias);
  parse_activation(kOp, activation);
}

void check_group_norm2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& mean, const at::Tensor& var, int64_t groups,
                                 const OptionalTensor& weight, const OptionalTensor& bias) {
  check_images(kBackward, input, groups, weight, bias);
  TORCH_CHECK(grad_output.sym_sizes() == input.sym_sizes(), "cnnfast::", kBackward,
              ": grad_output has shape ", grad_output.sym_sizes(), ", but input has ", input.sym_sizes());
  for (const auto& [name, t] : {std::pair("mean", &mean), std::pair("var", &var)})
    TORCH_CHECK(t->dim() == 2 && t->sym_size(0) == input.sym_size(0) && t->sym_size(1) == groups &&
                    t->scalar_type() == statistics_type(input.scalar_type()) && t->device() == input.device(),
                "cnnfast::", kBackward, ": ", name, " must be what group_norm2d gave, ",
                statistics_type(input.scalar_type()), " of shape [", input.sym_size(0), ", ", groups,
                "], not ", t->scalar_type(), " of shape ", t->sym_sizes());
}

GroupNorm2dOutputs group_norm2d_composite(const at::Tensor& input, int64_t groups,
                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                          double eps, std::string_view activation) {
  check_group_norm2d(input, groups, weight, bias, activation);
  const GroupedImages as(input, groups);
  const auto [var, mean] = at::var_mean(as.join(input), at::IntArrayRef({2}), /*correction=*/0);
  const at::Tensor y = activate(as.scaled(as.normalised(input, mean, at::rsqrt(var + eps)), weight, bias),
                                parse_activation(kOp, activation));
  return {own_channels_last(as_type(y, input.scalar_type())), mean, var};
}

GroupNorm2dGradients group_norm2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                     const at::Tensor& mean, const at::Tensor& var,
                                                     int64_t groups, const OptionalTensor& weight,
                                                     const OptionalTensor& bias, double eps,
                                                     std::string_view activation,
                                                     std::array<bool, 3> output_mask) {
  check_group_norm2d_backward(grad_output, input, mean, var, groups, weight, bias);
  const auto [need_input, need_weight, need_bias] = output_mask;
  const GroupedImages as(input, groups);
  const at::Tensor inverse = at::rsqrt(var + eps), normal = as.normalised(input, mean, inverse);
  const at::Tensor grad = gradient_through(as_type(grad_output, as.type), as.scaled(normal, weight, bias),
                                           parse_activation(kBackward, activation));
  const auto per_channel = [&](bool wanted, const OptionalTensor& parameter, const at::Tensor& values) {
    if (!wanted) return no_gradient(input);
    const at::Tensor sum = values.sum(at::IntArrayRef({0, 2, 3}));
    return present(parameter) ? as_type(sum, parameter->scalar_type()) : sum;
  };
  at::Tensor grad_input = no_gradient(input);
  if (need_input) {
    const at::Tensor g = as.join(present(weight) ? grad * as.of_channels(*weight) : grad);
    const auto mean_of = [](const at::Tensor& t) { return t.mean(at::IntArrayRef({2}), /*keepdim=*/true); };
    const at::Tensor values = (g - mean_of(g) - normal * mean_of(g * normal)) * inverse.unsqueeze(2);
    grad_input = own_channels_last(as_type(as.apart(values), input.scalar_type()));
  }
  return {grad_input, per_channel(need_weight, weight, grad * as.apart(normal)),
          per_channel(need_bias, bias, grad)};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("group_norm2d", TORCH_FN(group_norm2d_composite));
  m.impl("group_norm2d_backward", TORCH_FN(group_norm2d_backward_composite));
}

}  // namespace cnnfast
