// Winograd convolution of bfloat16 images by products of 16-bit whole numbers (AVX512-VNNI: twice the
// products of floats a second). Transformed pixels and weights are scaled to whole numbers in blocks,
// multiplied and summed exactly in 32 bits, and scaled back: block floating point. Results err by about as
// much as from weights rounded to bfloat16, or by less (docs/performance.md); weights are not rounded before.
#pragma once
#include <stdint.h>

#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

// Input channels whose products are summed as whole numbers; each such chunk of a transformed tile has a
// scale of its own at every point.
constexpr int64_t kFixedChunk = 64;
// Largest whole number of a transformed pixel. Weights are scaled so that no sum of a chunk leaves 32 bits.
constexpr int32_t kFixedLimit = (1 << 14) - 1;

// Input channels are cut evenly, at multiples of 16.
struct FixedChunks {
  int64_t count, length;  // the last may have fewer channels
  explicit constexpr FixedChunks(int64_t channels)
      : count((channels + kFixedChunk - 1) / kFixedChunk),
        length(((channels + count - 1) / count + 15) / 16 * 16) {
    count = (channels + length - 1) / length;
  }
  constexpr int64_t channels() const { return count * length; }
};

// y = act(conv(act'(x * in_scale + in_shift)) + shift + residual) for one group of channels, rounded once.
// weight: kernel point (of ConvAlgorithm), panel of output channels, pair of input channels, output channel,
// channel of the pair; zero up to channels() of FixedChunks. weight_scale: kernel point, output channel up to
// whole vectors. First layers (cpu/first_winograd.h): vector of output channels, column of points, pair of
// channels, row of points, output channel, channel of the pair; a scale for each output channel.
struct FixedWinogradCall {
  View16 input, output, residual;  // residual.data may be null
  int64_t stride, top,
      left;  // output pixel (y, x) begins at input pixel (y * stride - top, x * stride - left)
  int64_t in_height, in_width;                                 // what lies outside is zero, and not read
  int64_t height, width;                                       // of the output
  int64_t points, tile, tile_height, tile_rows, tile_columns;  // as in WinogradCall
  int64_t in_channels, channels, panel_vectors;
  const int16_t* weight;
  const float* weight_scale;
  const float* shift;                // up to whole vectors, or null
  const float *in_scale, *in_shift;  // one per input channel; null: x as it is
  Activation in_activation, activation;
  int64_t block_tiles, block_panels;  // worked on at once
  float* scratch;                     // of the calling thread, aligned to a cache line
};

// Weights of one point and panel: `inputs` rows of `lanes` values, whole vectors, to numbers and scales in
// the order of FixedWinogradCall. A channel with weights that are not finite has the scale NaN.
struct FixedWeightsCall {
  const float* weights;
  int64_t inputs, lanes;
  int16_t* numbers;
  float* scales;
};

}  // namespace cnnfast::cpu
