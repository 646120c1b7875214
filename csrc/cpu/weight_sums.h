// Sums of a weight's gradient as direct convolution's kernels leave them, and their way into the tensor.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/conv_geometry.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// One group of a convolution, from the output's gradient and the weight.
ConvGeometry group_geometry(const at::Tensor& grad, const at::Tensor& weight, const Conv2dParams& p);

// Where the input value of every kernel position (row, column, channel) lies from a pixel's first one.
std::vector<int64_t> position_offsets(const ConvGeometry& g, const View& input);

// From the order of packed weights to a tensor's, input channels [begin, end).
void unpack_sums(const ConvGeometry& g, const Panels& panels, const float* sums, float* to,
                 WeightStrides strides, int64_t begin, int64_t end);

}  // namespace cnnfast::cpu
