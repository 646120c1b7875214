#include "ops/conv_gradients.h"

#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace cnnfast {
namespace {

using Gradient = decltype(conv2d_weight_grad_composite);

at::Tensor gradient(const c10::TypedOperatorHandle<Gradient>& op, const at::Tensor& grad_output,
                    const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p) {
  return op.call(grad_output, input, weight, p.stride, p.padding, p.dilation, p.groups);
}

c10::TypedOperatorHandle<Gradient> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Gradient>();
}

}  // namespace

ConvGradients conv_gradients(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             const Conv2dParams& p, WantedConvGradients wanted) {
  static const auto of_input = find("cnnfast::conv2d_input_grad"),
                    of_weight = find("cnnfast::conv2d_weight_grad");
  ConvGradients g;
  if (wanted.input) g.input = gradient(of_input, grad_output, input, weight, p);
  if (wanted.weight) g.weight = gradient(of_weight, grad_output, input, weight, p);
  if (wanted.bias) g.bias = grad_output.sum({0, 2, 3});
  return g;
}

}  // namespace cnnfast
