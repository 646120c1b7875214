// Weights of first layers as kernels/winograd_first.inl reads them.
#pragma once
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// Kernels of some output channels, from `first` on, of which `used` are there, `stored` whole vectors.
struct KernelsOfPanel {
  const float* weight;
  WeightStrides strides;
  int64_t first, used, stored;
};

// Of one output channel.
int64_t first_layer_pairs(const ConvGeometry& g);
// numbers and scales: of all channels (FixedWinogradCall). A channel with weights that are not finite has the
// scale NaN.
void pack_first_layer(const ConvGeometry& g, const KernelsOfPanel& kernels, int16_t* numbers, float* scales);

}  // namespace cnnfast::cpu
