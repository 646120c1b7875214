// Packed weights of the operators conv2d and linear, kept while their tensor lives unchanged.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>

#include "cpu/conv_job.h"

namespace cnnfast::cpu {

// Packs `weight` (float32 or bfloat16) or finds it packed. An entry is found again by the tensor's identity,
// its version counter, its memory, the groups and the algorithm; it goes with the tensor. Inference tensors
// have no version counter and are packed at every call.
std::shared_ptr<const AlignedFloats> packed_weight(const at::Tensor& weight, const ConvGeometry& geometry);
// The same as the kernels that multiply bfloat16 take it (cpu/conv16_job.h).
std::shared_ptr<const AlignedFloats> packed_pairs(const at::Tensor& weight, const ConvGeometry& geometry);

// Whether a gradient is recorded for `weight`, which then changes before it is used again.
bool is_trained(const at::Tensor& weight);

WeightStrides weight_strides(const at::Tensor& weight);

void clear_pack_cache();

}  // namespace cnnfast::cpu
