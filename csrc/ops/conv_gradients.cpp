#include "ops/conv_gradients.h"

#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace cnnfast {
namespace {

// What autograd and compiled graphs expect.
at::Tensor in_strides_of(const at::Tensor& t, const at::Tensor& like) {
  return t.strides() == like.strides() ? t : at::empty_like(like).copy_(t);
}

// With stride 1 the gradient of the input is a convolution of the output's gradient with the turned weight,
// for which there are kernels.
bool is_convolution(const at::Tensor& grad_output, const at::Tensor& weight, const Conv2dParams& p) {
  if (!grad_output.is_cpu() || grad_output.scalar_type() != at::kFloat || weight.scalar_type() != at::kFloat)
    return false;
  for (int i = 0; i < 2; ++i)
    if (p.stride[i] != 1 || p.dilation[i] != 1 || weight.sym_size(2 + i) <= p.padding[i]) return false;
  return p.groups == 1 && grad_output.sym_numel() != 0;
}

at::Tensor input_gradient(const at::Tensor& grad_output, const at::Tensor& weight, const Conv2dParams& p) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cnnfast::conv2d", "")
                             .typed<decltype(conv2d_composite)>();
  const at::Tensor turned = weight.flip({2, 3}).transpose(0, 1);
  const int64_t padding[2] = {weight.size(2) - 1 - p.padding[0], weight.size(3) - 1 - p.padding[1]};
  return op.call(grad_output, turned, std::nullopt, std::nullopt, std::nullopt, p.stride, padding, p.dilation,
                 1, "none");
}

at::Tensor weight_gradient(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                           const Conv2dParams& p) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cnnfast::conv2d_weight_grad", "")
                             .typed<decltype(conv2d_weight_grad_composite)>();
  return op.call(grad_output, input, weight, p.stride, p.padding, p.dilation, p.groups);
}

}  // namespace

ConvGradients conv_gradients(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             const Conv2dParams& p, WantedConvGradients wanted) {
  ConvGradients g;
  if (wanted.input && is_convolution(grad_output, weight, p)) {
    g.input = in_strides_of(input_gradient(grad_output, weight, p), input);
    wanted.input = false;
  }
  if (wanted.input)
    g.input = in_strides_of(
        std::get<0>(at::convolution_backward(grad_output, input, weight, std::nullopt, p.stride, p.padding,
                                             p.dilation, false, {0, 0}, p.groups, {true, false, false})),
        input);
  if (wanted.weight) g.weight = weight_gradient(grad_output, input, weight, p);
  if (wanted.bias) g.bias = grad_output.sum({0, 2, 3});
  return g;
}

}  // namespace cnnfast
