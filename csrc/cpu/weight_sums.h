// Sums of a weight's gradient as direct convolution's kernels leave them, and their way into the tensor.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/conv_job.h"

namespace cnnfast::cpu {

// From the order of packed weights to the tensor's, input channels [begin, end).
void unpack_sums(const ConvGeometry& g, const Panels& panels, const float* sums, const at::Tensor& to,
                 int64_t begin, int64_t end);

}  // namespace cnnfast::cpu
