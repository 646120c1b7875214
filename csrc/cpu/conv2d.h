// The float32 convolution on tensors, for operators that contain one.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Arguments must have passed check_conv2d, which gave `sizes`.
at::Tensor conv2d_float(const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes);

}  // namespace cnnfast::cpu
