// Pooling on tensors that are served, for operators that contain one.
#pragma once
#include "ops/pool2d.h"

namespace cnnfast::cuda {

// Arguments must have passed check_pool2d. `output` has the sizes it gave; it may be a slice of a
// concatenation.
void max_pool2d_into(const at::Tensor& input, const Pool2dParams& params, const Activation& activation,
                     const at::Tensor& output);
void avg_pool2d_into(const at::Tensor& input, const Pool2dParams& params, bool count_include_pad,
                     std::optional<int64_t> divisor_override, const Activation& activation,
                     const at::Tensor& output);

}  // namespace cnnfast::cuda
