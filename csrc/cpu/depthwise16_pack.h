// Whether a depthwise convolution of bfloat16 values, or one in groups of a few channels, runs by its own
// products of pairs (cpu/depthwise16.h), and its constants.
#pragma once
#include "cpu/conv16_job.h"

namespace cnnfast::cpu {

bool takes_depthwise_pairs(const ConvGeometry& g);
// Weights rounded to bfloat16, block by block of channels.
AlignedFloats pack_depthwise_pairs(const ConvGeometry& g, const float* weight, WeightStrides strides);
// Null gives zeros.
AlignedFloats pack_depthwise_shift(const ConvGeometry& g, const float* values);

}  // namespace cnnfast::cpu
