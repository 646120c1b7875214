#include "cpu/depthwise16_pack.h"

#include <algorithm>

#include "cpu/bf16.h"

namespace cnnfast::cpu {
namespace {

// Groups of fewer channels leave most of a tile empty.
constexpr int64_t kLeastTileGroup = 8;

// The kernel rows that a term's pairs meet, -1: none.
struct TermRows {
  int64_t first, second;
};

TermRows rows_of(int64_t term, int64_t kernel) {
  const int64_t pairs = (kernel - 1) / 2;
  if (term == 0) return {0, -1};
  if (term <= pairs) return {2 * term - 1, 2 * term};
  if (term < kernel) return {2 * (term - pairs - 1), 2 * (term - pairs - 1) + 1};
  return {kernel - 1, -1};
}

template <class Body>
void for_lanes(int64_t channels, Body&& body) {
  for (int64_t block = 0; block < channels; block += kDepthwiseBlock)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t lane = 0; lane < kDepthwiseLanes; ++lane) {
        const int64_t channel = block + depthwise_channel(half, lane);
        if (channel < channels) body(block / kDepthwiseBlock, half, lane, channel);
      }
}

int64_t blocks_of(const ConvGeometry& g) { return (g.out_channels + kDepthwiseBlock - 1) / kDepthwiseBlock; }

}  // namespace

bool takes_depthwise_pairs(const ConvGeometry& g) {
  if (!bf16_kernels().depthwise || g.groups == 1 || g.group_in() != g.group_out()) return false;
  // Tiles multiply so much faster that half empty ones are no loss.
  if (multiplies_by_tiles() && g.group_in() >= kLeastTileGroup) return false;
  return g.dilation_h == 1 && g.dilation_w == 1 && g.kernel_h == g.kernel_w && g.stride_h == g.stride_w &&
         has_depthwise16(g.kernel_w, g.stride_w, g.group_in());
}

namespace {

AlignedFloats zeros(int64_t floats) {
  AlignedFloats all(floats);
  std::fill_n(all.data(), floats, 0.0f);
  return all;
}

AlignedFloats pack_group_pairs(const ConvGeometry& g, const float* weight, WeightStrides strides) {
  const int64_t group = g.group_in(), lanes = kDepthwiseLanes;
  const int64_t vector_values = depthwise_block_values(g.kernel_w, group) / (kDepthwiseBlock / lanes);
  AlignedFloats packed = zeros(blocks_of(g) * depthwise_block_values(g.kernel_w, group) / 2);
  for (int64_t out = 0; out < g.out_channels; ++out) {
    uint16_t* to = values16(packed) + out / lanes * vector_values + 2 * (out % lanes);
    for (int64_t y = 0; y < g.kernel_h; ++y)
      for (int64_t x = 0; x < g.kernel_w; ++x)
        for (int64_t in = 0; in < group; in += 2, to += 2 * lanes)
          for (int64_t k = 0; k < 2; ++k)
            to[k] = to_bf16(
                weight[out * strides.out + (in + k) * strides.in + y * strides.row + x * strides.column]);
  }
  return packed;
}

}  // namespace

AlignedFloats pack_depthwise_pairs(const ConvGeometry& g, const float* weight, WeightStrides strides) {
  if (!g.depthwise()) return pack_group_pairs(g, weight, strides);
  const int64_t kernel = g.kernel_w, block_values = depthwise_block_values(kernel, 1);
  AlignedFloats packed = zeros(blocks_of(g) * block_values / 2);
  for_lanes(g.out_channels, [&](int64_t block, int64_t half, int64_t lane, int64_t channel) {
    const float* from = weight + channel * strides.out;
    uint16_t* to = values16(packed) + block * block_values + half * kDepthwiseBlock + 2 * lane;
    for (int64_t term = 0; term < depthwise_terms(kernel); ++term) {
      const auto [first, second] = rows_of(term, kernel);
      for (int64_t x = 0; x < kernel; ++x, to += 2 * kDepthwiseBlock) {
        to[0] = to_bf16(from[first * strides.row + x * strides.column]);
        if (second >= 0) to[1] = to_bf16(from[second * strides.row + x * strides.column]);
      }
    }
  });
  return packed;
}

AlignedFloats pack_depthwise_shift(const ConvGeometry& g, const float* values) {
  AlignedFloats packed = zeros(blocks_of(g) * kDepthwiseBlock);
  if (values && !g.depthwise()) std::copy_n(values, g.out_channels, packed.data());
  if (values && g.depthwise())
    for_lanes(g.out_channels, [&](int64_t block, int64_t half, int64_t lane, int64_t channel) {
      packed.data()[block * kDepthwiseBlock + half * kDepthwiseLanes + lane] = values[channel];
    });
  return packed;
}

}  // namespace cnnfast::cpu
