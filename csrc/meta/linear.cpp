// Shapes and strides of linear, without data.
#include "ops/linear.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

at::Tensor linear_meta(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                       std::string_view activation) {
  return at::empty_symint(check_linear(input, weight, bias, activation), input.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_backward_meta(const at::Tensor&,
                                                                    const at::Tensor& input,
                                                                    const at::Tensor& weight,
                                                                    const at::Tensor&, std::string_view,
                                                                    std::array<bool, 3> mask) {
  const auto none = [&] { return no_gradient(input); };
  return {mask[0] ? at::empty_symint(input.sym_sizes(), input.options()) : none(),
          mask[1] ? at::empty_symint(weight.sym_sizes(), weight.options()) : none(),
          mask[2] ? at::empty_symint({weight.sym_size(0)}, weight.options()) : none()};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("linear", TORCH_FN(linear_meta));
  m.impl("linear_backward", TORCH_FN(linear_backward_meta));
}

}  // namespace cnnfast
