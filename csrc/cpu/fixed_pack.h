// Weights as the kernels of cpu/fixed_winograd.h read them.
#pragma once
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// Whether the active instruction set has the kernels.
bool has_fixed_winograd();

// Of one group: floats of memory for the numbers, behind which the scales lie.
int64_t fixed_numbers(const ConvGeometry& g);
int64_t fixed_group_floats(const ConvGeometry& g);

// Transformed weights of all groups as whole numbers with their scales, into groups * fixed_group_floats
// floats. quick: as for pack_weight_into.
void pack_fixed_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed);

}  // namespace cnnfast::cpu
