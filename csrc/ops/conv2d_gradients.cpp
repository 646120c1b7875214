// conv2d_input_grad and conv2d_weight_grad: checks, and the computation by ATen.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "ops/conv2d.h"

namespace cnnfast {

at::Tensor in_strides_of(const at::Tensor& like, const at::Tensor& grad) {
  return grad.strides() == like.strides() ? grad : at::empty_like(like).copy_(grad);
}

void check_conv2d_gradient(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                           const at::Tensor& weight, const Conv2dParams& params) {
  const auto sizes = check_conv2d_geometry(op, input, weight, params);
  check_same_kind(op, input, "grad_output", grad_output);
  TORCH_CHECK(grad_output.sym_sizes() == c10::SymIntArrayRef(sizes), "cnnfast::", op,
              ": grad_output has shape ", grad_output.sym_sizes(), ", but the output of the convolution has ",
              c10::SymIntArrayRef(sizes));
}

at::Tensor conv2d_input_grad_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& weight, at::IntArrayRef stride,
                                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight, {stride, padding, dilation, groups});
  const at::Tensor grad = std::get<0>(
      at::convolution_backward(grad_output, input, as_type(weight, input.scalar_type()), std::nullopt, stride,
                               padding, dilation, false, {0, 0}, groups, {true, false, false}));
  return in_strides_of(input, grad);
}

at::Tensor conv2d_weight_grad_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                        const at::Tensor& weight, at::IntArrayRef stride,
                                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight,
                        {stride, padding, dilation, groups});
  const at::Tensor grad = std::get<1>(
      at::convolution_backward(grad_output, input, as_type(weight, input.scalar_type()), std::nullopt, stride,
                               padding, dilation, false, {0, 0}, groups, {false, true, false}));
  return in_strides_of(weight, as_type(grad, weight.scalar_type()));
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("conv2d_input_grad", TORCH_FN(conv2d_input_grad_composite));
  m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad_composite));
}

}  // namespace cnnfast
