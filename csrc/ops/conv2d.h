// conv2d: act(conv(input, weight) * scale + bias + residual). Argument checks that every backend calls, and
// the same computation by ATen for dtypes and devices without kernels of our own.
#pragma once
#include "ops/common.h"

namespace cnnfast {

struct Conv2dParams {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

struct Conv2dArgs {
  const at::Tensor& input;
  const at::Tensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& scale;
  const OptionalTensor& residual;
  Conv2dParams params;
  std::string_view activation;
};

using Conv2dGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The output's sizes; errors name the operator, the argument and the shapes.
std::vector<c10::SymInt> check_conv2d(const char* op, const Conv2dArgs& args);
// Checks input, weight and geometry alone.
std::vector<c10::SymInt> check_conv2d_geometry(const char* op, const at::Tensor& input,
                                               const at::Tensor& weight, const Conv2dParams& params);
// The same for images of which the sizes alone are known, as inside a block; of type and device of `kind`.
std::vector<c10::SymInt> conv2d_output_sizes(const char* op, const at::Tensor& kind,
                                             c10::SymIntArrayRef input, const at::Tensor& weight,
                                             const Conv2dParams& params);

at::Tensor conv2d_composite(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& scale, const OptionalTensor& residual,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                            int64_t groups, std::string_view activation);

// Gradients of the input alone and of the weight alone, in the strides of either.
// Backends give gradients in whatever strides they like; autograd and compiled graphs expect the tensor's.
at::Tensor in_strides_of(const at::Tensor& like, const at::Tensor& grad);
void check_conv2d_gradient(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                           const at::Tensor& weight, const Conv2dParams& params);
at::Tensor conv2d_input_grad_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& weight, at::IntArrayRef stride,
                                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);
at::Tensor conv2d_weight_grad_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                        const at::Tensor& weight, at::IntArrayRef stride,
                                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

Conv2dGradients conv2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                const at::Tensor& weight, const OptionalTensor& scale,
                                const at::Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
                                at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                                std::array<bool, 5> output_mask);

}  // namespace cnnfast
