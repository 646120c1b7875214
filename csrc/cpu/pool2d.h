// Pooling on tensors, for operators that contain one.
#pragma once
#include "cpu/kernel_table.h"
#include "ops/pool2d.h"

namespace cnnfast::cpu {

// What kernels are told of the windows, without views; `sizes` are the output's.
PoolCall pool_call(const at::Tensor& images, const Pool2dParams& params, at::IntArrayRef sizes);

// Arguments must have passed check_pool2d. `output` has the sizes it gave and adjacent channels; it may be a
// slice of a concatenation.
void max_pool2d_into(const at::Tensor& input, const Pool2dParams& params, const at::Tensor& output);
void avg_pool2d_into(const at::Tensor& input, const Pool2dParams& params, bool count_include_pad,
                     std::optional<int64_t> divisor_override, const at::Tensor& output);

}  // namespace cnnfast::cpu
