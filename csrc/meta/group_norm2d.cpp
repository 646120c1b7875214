// Shapes and strides of group_norm2d, without data.
#include "ops/group_norm2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

GroupNorm2dOutputs group_norm2d_meta(const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                                     const OptionalTensor& bias, double, std::string_view activation) {
  check_group_norm2d(input, groups, weight, bias, activation);
  const auto statistics = [&] {
    return at::empty_symint({input.sym_size(0), c10::SymInt(groups)},
                            input.options().dtype(statistics_type(input.scalar_type())));
  };
  return {at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast), statistics(),
          statistics()};
}

GroupNorm2dGradients group_norm2d_backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                                const at::Tensor& mean, const at::Tensor& var, int64_t groups,
                                                const OptionalTensor& weight, const OptionalTensor& bias,
                                                double, std::string_view, std::array<bool, 3> mask) {
  check_group_norm2d_backward(grad_output, input, mean, var, groups, weight, bias);
  const auto per_channel = [&](bool wanted, const OptionalTensor& parameter) {
    if (!wanted) return no_gradient(input);
    const auto type = present(parameter) ? parameter->scalar_type() : statistics_type(input.scalar_type());
    return at::empty_symint({input.sym_size(1)}, input.options().dtype(type));
  };
  return {mask[0] ? at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                  : no_gradient(input),
          per_channel(mask[1], weight), per_channel(mask[2], bias)};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("group_norm2d", TORCH_FN(group_norm2d_meta));
  m.impl("group_norm2d_backward", TORCH_FN(group_norm2d_backward_meta));
}

}  // namespace cnnfast
