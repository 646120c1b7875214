#include "cuda/convolution.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstdlib>
#include <string_view>

#include "cuda/batch_norm_tensors.h"
#include "cuda/tensors.h"
#include "ops/device_kernel.h"
#include "ops/slice_conv.h"

namespace cnnfast::cuda {
namespace {

// Without bias and the rest.
at::Tensor bare_convolution(const Conv2dArgs& a) {
  const Conv2dParams& p = a.params;
  return at::conv2d(a.input, a.weight, std::nullopt, p.stride, p.padding, p.dilation, p.groups);
}

bool wants_cudnn_fused() {
  static const bool wanted = [] {
    const char* value = std::getenv("CNNFAST_CUDNN_FUSED");
    const std::string_view text = value ? value : "";
    TORCH_CHECK(text.empty() || text == "0" || text == "1", "CNNFAST_CUDNN_FUSED must be 0 or 1, not ", text);
    return text == "1";
  }();
  return wanted;
}

}  // namespace

bool bn_act_conv2d_into(const BnActConv2dArgs& args, double eps, const at::Tensor& output) {
  const auto other = slice_convs().bn_act_conv2d;
  return other && other(args, eps, output);
}

bool fits_cudnn_fused(const Conv2dArgs& a) {
  const bool has_cudnn = at::globalContext().userEnabledCuDNN() && at::detail::getCUDAHooks().hasCuDNN();
  return has_cudnn && a.activation == "relu" && !present(a.scale) && a.params.groups == 1 &&
         served(a.input) && a.input.numel() > 0 && !at::globalContext().deterministicCuDNN();
}

at::Tensor conv2d_cudnn_fused(const Conv2dArgs& a) {
  const Conv2dParams& p = a.params;
  const at::Tensor input = a.input.contiguous(at::MemoryFormat::ChannelsLast);
  // Zeros rather than no bias: without one ATen reads memory that nobody has written, times 0.
  const at::Tensor bias = present(a.bias) ? *a.bias : at::zeros({a.weight.size(0)}, a.input.options());
  if (present(a.residual))
    return at::cudnn_convolution_add_relu(input, a.weight, *a.residual, 1.0, bias, p.stride, p.padding,
                                          p.dilation, p.groups);
  return at::cudnn_convolution_relu(input, a.weight, bias, p.stride, p.padding, p.dilation, p.groups);
}

void conv2d_into(const Conv2dArgs& a, const at::Tensor& output) {
  if (output.numel() == 0) return;
  const auto other = slice_convs().conv2d;
  if (other && other(a, output)) return;
  const Activation activation = parse_activation("conv2d", a.activation);
  TORCH_INTERNAL_ASSERT(has_kernel(activation));
  finish_into(bare_convolution(a), a.scale, a.bias, a.residual, activation, output);
}

at::Tensor conv2d_images(const Conv2dArgs& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("cnnfast::conv2d", "")
                             .typed<decltype(conv2d_composite)>();
  const Conv2dParams& p = a.params;
  return op.call(a.input, a.weight, a.bias, a.scale, a.residual, p.stride, p.padding, p.dilation, p.groups,
                 a.activation);
}

namespace {

// conv2d on CUDA tensors by ATen's convolution and one pass for all that follows.
at::Tensor conv2d_with_last_pass(const at::Tensor& input, const at::Tensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& scale,
                                 const OptionalTensor& residual, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                 std::string_view activation_name) {
  const Conv2dArgs a{input,          weight, bias, scale, residual, {stride, padding, dilation, groups},
                     activation_name};
  const auto checked = check_conv2d("conv2d", a);
  const auto sizes = C10_AS_INTARRAYREF_SLOW(checked);
  const Activation activation = parse_activation("conv2d", a.activation);
  const bool few_pixels = sizes[0] * sizes[2] * sizes[3] <= INT32_MAX && sizes[1] <= kMostChannels;
  if (!served(a.input) || !few_pixels || !has_kernel(activation)) throw Unserved();
  const c10::cuda::CUDAGuard guard(a.input.device());
  if (wants_cudnn_fused() && fits_cudnn_fused(a)) {
    const at::Tensor y = conv2d_cudnn_fused(a);
    return own_channels_last(y);
  }
  const Conv2dParams& p = a.params;
  const bool bias_alone = !present(a.scale) && !present(a.residual) && activation.kind == Activation::kNone;
  // cuDNN adds a bias itself.
  const at::Tensor conv =
      bias_alone ? at::conv2d(a.input, a.weight, a.bias, p.stride, p.padding, p.dilation, p.groups)
                 : bare_convolution(a);
  const bool own_layout = conv.is_contiguous(at::MemoryFormat::ChannelsLast);
  if (bias_alone) return own_channels_last(conv);
  // Over what cuDNN has just written, where that has the operator's layout.
  const at::Tensor output = own_layout ? conv : empty_images(sizes, a.input);
  finish_into(conv, a.scale, a.bias, a.residual, activation, output);
  return output;
}

[[maybe_unused]] const bool registered = DeviceKernel<conv2d_composite>::set(conv2d_with_last_pass);

}  // namespace
}  // namespace cnnfast::cuda
