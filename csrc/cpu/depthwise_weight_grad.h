// The gradient of a depthwise convolution's weight by a kernel of its own: vectors of channels, each with all
// pixels, so that sums do not depend on the number of threads.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// One channel of output for each of input; float32 or bfloat16 images and weight.
bool serves_depthwise_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                               const at::Tensor& weight, int64_t groups);

// Float32, with the weight's strides.
at::Tensor depthwise_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& weight, const Conv2dParams& params);

}  // namespace cnnfast::cpu
