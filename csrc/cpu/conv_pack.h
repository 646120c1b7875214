// Weights and per-channel values in the order in which the kernels read them.
#pragma once
#include <optional>

#include "cpu/aligned_floats.h"
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// Weights in the order in which the kernels read them, with per-channel scale and shift (empty: none) padded
// to whole vectors.
struct PackedConv {
  PackedConv(const float* weight_, const AlignedFloats& scale_, const AlignedFloats& shift_)
      : weight(weight_), scale(scale_), shift(shift_) {}
  PackedConv(const AlignedFloats& weight_, const AlignedFloats& scale_, const AlignedFloats& shift_)
      : PackedConv(weight_.data(), scale_, shift_) {}
  PackedConv(const float* weight_, WeightStrides strides, const AlignedFloats& scale_,
             const AlignedFloats& shift_)
      : weight(weight_), raw(strides), scale(scale_), shift(shift_) {}
  const float* weight;
  std::optional<WeightStrides> raw;  // of weights that were not packed
  const AlignedFloats& scale;
  const AlignedFloats& shift;
};

// Weights of the PyTorch layout are given by strides (o, i, y, x), so that a linear layer over a flattened
// image (C, H, W order) can be read as a convolution. quick: Winograd's transform by float32 arithmetic,
// where it happens at every call; else in double, rounded once.
AlignedFloats pack_weight(const ConvGeometry& g, const float* weight, WeightStrides strides);
// The same into memory of packed_floats(g) floats, aligned to 64 bytes.
int64_t packed_floats(const ConvGeometry& g);
void pack_weight_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed,
                      bool quick = false);
// Whether weights that are used once had better not be packed: see PackedConv::raw.
bool takes_raw_weights(const ConvGeometry& g);
// Tiles that meet a block of such weights at once.
int64_t raw_block(const ConvGeometry& g);
// Transformed weights beyond this do not stay in the second-level cache.
constexpr int64_t kNearWeightBytes = 1 << 20;
// Copies `values` (one per output channel, or null) for the kernels; null stays empty.
AlignedFloats pack_channels(const ConvGeometry& g, const float* values);

}  // namespace cnnfast::cpu
