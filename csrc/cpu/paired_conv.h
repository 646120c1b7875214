// Convolutions on bfloat16 tensors where instructions multiply pairs of bfloat16 values. The kernels are
// those of networks frozen in bfloat16 (cpu/conv16_job.h).
#pragma once
#include "cpu/conv_geometry.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Whether products of bfloat16 values are faster than those of widened ones in every layer: those of tiles.
// CNNFAST_BF16_PAIRS: yes, on any CPU, for tests.
bool multiplies_bfloat16();
// Whether any product is one of pairs, and torch has instructions for them as well.
bool has_bfloat16_products();

// Whether they are in this layer and in its gradients. Vectors of pairs (AVX512-BF16) are where Winograd's
// algorithm saves less than they do: 1x1 kernels, strides. Float32 weights are rounded for them.
bool multiplies_pairs(const ConvGeometry& geometry);

// The convolution into a tensor of the output's sizes whose channels are adjacent; false where pairs do not
// serve: as above, and with a scale. Arguments must have passed check_conv2d.
bool paired_conv2d_into(const Conv2dArgs& args, const at::Tensor& output);
// The same for callers that know that pairs serve.
void multiply_pairs_into(const Conv2dArgs& args, const at::Tensor& output);
// The same into a tensor of its own; undefined where pairs do not serve.
at::Tensor paired_conv2d(const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes);

}  // namespace cnnfast::cpu
