// The float32 convolution on tensors, for operators that contain one.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Arguments must have passed check_conv2d, which gave `sizes`.
at::Tensor conv2d_float(const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes);
// The same into a tensor of the output's sizes whose channels are adjacent: a slice of a concatenation, too.
void conv2d_into(const Conv2dArgs& args, const at::Tensor& output);

}  // namespace cnnfast::cpu
