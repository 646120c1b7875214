// Gradients of weights on bfloat16 tensors where instructions multiply pairs of bfloat16 values.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// In the weight's type and layout, sums in float32, rounded once; the result does not depend on the number of
// threads. Undefined where pairs do not serve: without such instructions, with few input channels in a group.
// Arguments must have passed check_conv2d_gradient.
at::Tensor paired_weight_grad(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                              const Conv2dParams& params);

}  // namespace cnnfast::cpu
