#include <ATen/Functions.h>
#include <torch/library.h>

#include "ops/conv2d.h"

namespace cnnfast {

void check_conv2d_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, const Conv2dParams& params) {
  const auto sizes = check_conv2d_geometry("conv2d_weight_grad", input, weight, params);
  check_same_kind("conv2d_weight_grad", input, "grad_output", grad_output);
  TORCH_CHECK(grad_output.sym_sizes() == c10::SymIntArrayRef(sizes),
              "cnnfast::conv2d_weight_grad: grad_output has shape ", grad_output.sym_sizes(),
              ", but the output of the convolution has ", c10::SymIntArrayRef(sizes));
}

at::Tensor conv2d_weight_grad_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                        const at::Tensor& weight, at::IntArrayRef stride,
                                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_conv2d_weight_grad(grad_output, input, weight, {stride, padding, dilation, groups});
  const at::Tensor grad =
      std::get<1>(at::convolution_backward(grad_output, input, weight, std::nullopt, stride, padding,
                                           dilation, false, {0, 0}, groups, {false, true, false}));
  return grad.strides() == weight.strides() ? grad : at::empty_like(weight).copy_(grad);
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad_composite));
}

}  // namespace cnnfast
