#include "cpu/depthwise16_pack.h"

#include <algorithm>

#include "cpu/bf16.h"

namespace cnnfast::cpu {
namespace {

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
  return bf16_kernels().depthwise && g.depthwise() && g.dilation_h == 1 && g.dilation_w == 1 &&
         g.kernel_h == g.kernel_w && g.stride_h == g.stride_w && has_depthwise16(g.kernel_w, g.stride_w);
}

AlignedFloats pack_depthwise_pairs(const ConvGeometry& g, const float* weight, WeightStrides strides) {
  const int64_t kernel = g.kernel_w, block_values = depthwise_block_values(kernel);
  AlignedFloats packed(blocks_of(g) * block_values / 2);
  std::fill_n(packed.data(), packed.size(), 0.0f);
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
  AlignedFloats packed(blocks_of(g) * kDepthwiseBlock);
  std::fill_n(packed.data(), packed.size(), 0.0f);
  if (values)
    for_lanes(g.out_channels, [&](int64_t block, int64_t half, int64_t lane, int64_t channel) {
      packed.data()[block * kDepthwiseBlock + half * kDepthwiseLanes + lane] = values[channel];
    });
  return packed;
}

}  // namespace cnnfast::cpu
