// Convolutions on bfloat16 tensors where tiles multiply pairs of bfloat16 values. The kernels are
// those of networks frozen in bfloat16 (cpu/conv16_job.h).
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Whether products of bfloat16 values are faster than those of widened ones. Vectors of pairs (AVX512-BF16)
// are not, over whole steps: Winograd's algorithm saves more than they do. CNNFAST_BF16_PAIRS: yes, on any
// CPU, for tests.
bool multiplies_bfloat16();

// The convolution into a tensor of the output's sizes whose channels are adjacent; false where pairs do not
// serve: without such instructions, with a scale, with groups of few channels. Arguments must have passed
// check_conv2d.
bool paired_conv2d_into(const Conv2dArgs& args, const at::Tensor& output);
// The same into a tensor of its own; undefined where pairs do not serve.
at::Tensor paired_conv2d(const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes);

}  // namespace cnnfast::cpu
