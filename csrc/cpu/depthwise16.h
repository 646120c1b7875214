// Depthwise convolution of bfloat16 images by products of pairs: each pair is a channel's values in two
// neighbouring rows, so that no row is read beyond those that an output needs and no value meets a weight of
// zero that stands for nothing. And convolution in groups of a few channels, whose pairs are channels of a
// group.
#pragma once
#include <stdint.h>

#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

// Channels of a block, in two vectors of 16 sums.
constexpr int64_t kDepthwiseBlock = 32, kDepthwiseLanes = 16;

// The channel of a block that lane `lane` of vector `half` holds: the order in which rows are interleaved.
constexpr int64_t depthwise_channel(int64_t half, int64_t lane) {
  return 8 * (lane / 4) + 4 * half + lane % 4;
}

// Packed weights of a block: for the rows of the dot product (0, none), (1, 2), (3, 4), ... and then, for an
// output row below the first, (1, 2), ... with weights of a row less and the last row alone: see
// depthwise_terms. Each is kernel columns by halves by lanes by the two rows of the pair.
constexpr int64_t depthwise_terms(int64_t kernel) { return kernel + 1; }
//
// Of groups: vector of output channels, kernel row, kernel column, pair of a group's input channels, lane,
// channel of the pair.
constexpr int64_t depthwise_block_values(int64_t kernel, int64_t group) {
  const int64_t taps = group == 1 ? 2 * depthwise_terms(kernel) * kernel : kernel * kernel * group;
  return taps * kDepthwiseBlock;
}

// y = act(conv(x) + shift + residual), kernel x kernel pixels of one channel or of the channels of a group,
// the same stride both ways, dilation 1. input: the first tap of the first output pixel, with padding around
// it.
struct Depthwise16Call {
  View16 input, output, residual;  // residual.data may be null
  int64_t height, width;           // of the output
  int64_t kernel, stride;
  int64_t group;  // channels of a group, in and out
  int64_t channels;
  const uint16_t* weight;
  const float* shift;  // by blocks, in the order of depthwise_channel; of groups in their own
  Activation activation;
};

// Rows are computed from the first on, at most so many at a time: then all channels of the next ones.
constexpr int64_t kDepthwiseRows = 2;

// Kernels and strides that there is code for.
constexpr bool has_depthwise16(int64_t kernel, int64_t stride, int64_t group) {
  if (group > 1) return (group == 4 || group == 8) && kernel == 3 && (stride == 1 || stride == 2);
  return (kernel == 3 || kernel == 5 || (kernel == 7 && stride == 1)) && (stride == 1 || stride == 2);
}

}  // namespace cnnfast::cpu
