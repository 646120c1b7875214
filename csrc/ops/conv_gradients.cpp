#include "ops/conv_gradients.h"

#include <ATen/Functions.h>

namespace cnnfast {
namespace {

// Autograd would copy a gradient of other strides than its parameter's.
at::Tensor in_strides_of(const at::Tensor& t, const at::Tensor& like) {
  return t.strides() == like.strides() ? t : at::empty_like(like).copy_(t);
}

}  // namespace

ConvGradients conv_gradients(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             const Conv2dParams& p, WantedConvGradients wanted) {
  ConvGradients g;
  if (wanted.input || wanted.weight) {
    at::Tensor unused;
    std::tie(g.input, g.weight, unused) =
        at::convolution_backward(grad_output, input, weight, std::nullopt, p.stride, p.padding, p.dilation,
                                 false, {0, 0}, p.groups, {wanted.input, wanted.weight, false});
    if (wanted.weight) g.weight = in_strides_of(g.weight, weight);
  }
  if (wanted.bias) g.bias = grad_output.sum({0, 2, 3});
  return g;
}

}  // namespace cnnfast
