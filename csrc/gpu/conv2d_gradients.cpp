// Gradients of conv2d on CUDA tensors: ATen's (cuDNN) or Triton's, the faster one.
#include <torch/library.h>

#include "gpu/backends.h"
#include "gpu/conv2d_gradients_triton.h"
#include "gpu/key.h"
#include "gpu/triton/table.h"

namespace cnnfast::gpu {
namespace {

using Composite = decltype(conv2d_input_grad_composite);

at::Tensor run(Composite* composite, const ConvGradientCall& c) {
  const Conv2dParams& p = c.params;
  return composite(c.grad_output, c.input, c.weight, p.stride, p.padding, p.dilation, p.groups);
}

std::string key_of(const char* op, const ConvGradientCall& c) {
  Key key(op, c.grad_output);
  key.add(c.grad_output).add(c.input).add(c.weight);
  return key.add(c.params.stride).add(c.params.padding).add(c.params.dilation).add(c.params.groups).text();
}

using Found = Backends<ConvGradientCall, at::Tensor>;

// Adds Triton's kernels to ATen's; `run` gives the gradient in channels_last memory, and it gets the strides
// of `like`.
template <class Kernels, class Run>
Found with_triton(Composite* composite, const std::vector<Kernels>& kernels, const std::string& reason,
                  const Kernel& (*first)(const Kernels&), Run gradient,
                  at::Tensor const& (*like)(const ConvGradientCall&)) {
  Found found{{"aten", "", [composite](const ConvGradientCall& c) { return run(composite, c); }}};
  for (const Kernels& one : kernels)
    found.push_back({"triton/" + std::string(first(one).variant->name), "",
                     [one, gradient, like](const ConvGradientCall& c) {
                       return in_strides_of(like(c), gradient(one, c));
                     }});
  if (kernels.empty()) found.push_back({"triton", reason, nullptr});
  return found;
}

Found input_grad_backends(const ConvGradientCall& c) {
  std::string reason;
  const auto kernels = find_triton_input_grad(c, &reason);
  return with_triton<Kernel>(
      conv2d_input_grad_composite, kernels, reason, [](const Kernel& k) -> const Kernel& { return k; },
      run_triton_input_grad, [](const ConvGradientCall& c) -> const at::Tensor& { return c.input; });
}

Found weight_grad_backends(const ConvGradientCall& c) {
  std::string reason;
  const auto kernels = find_triton_weight_grad(c, &reason);
  return with_triton<WeightGradKernels>(
      conv2d_weight_grad_composite, kernels, reason,
      [](const WeightGradKernels& k) -> const Kernel& { return k.product; }, run_triton_weight_grad,
      [](const ConvGradientCall& c) -> const at::Tensor& { return c.weight; });
}

at::Tensor chosen(const char* op, Composite* composite, Found (*backends)(const ConvGradientCall&),
                  const ConvGradientCall& call) {
  const bool nothing_to_choose = table().count == 0 && forced_backend() != "triton";
  if (nothing_to_choose || forced_backend() == "aten" || call.grad_output.numel() == 0)
    return run(composite, call);
  check_conv2d_gradient(op, call.grad_output, call.input, call.weight, call.params);
  return run_chosen<ConvGradientCall, at::Tensor>(op, key_of(op, call), call.input.device(), call,
                                                  [&] { return backends(call); });
}

at::Tensor conv2d_input_grad(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                             int64_t groups) {
  return chosen("conv2d_input_grad", conv2d_input_grad_composite, input_grad_backends,
                {grad_output, input, weight, {stride, padding, dilation, groups}});
}

at::Tensor conv2d_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation, int64_t groups) {
  return chosen("conv2d_weight_grad", conv2d_weight_grad_composite, weight_grad_backends,
                {grad_output, input, weight, {stride, padding, dilation, groups}});
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) {
  m.impl("conv2d_input_grad", TORCH_FN(conv2d_input_grad));
  m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad));
}

}  // namespace cnnfast::gpu
