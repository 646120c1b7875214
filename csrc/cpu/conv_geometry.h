// The sizes of a convolution, and how its output channels are cut for the kernels.
#pragma once
#include <cstdint>

#include "cpu/conv_algorithm.h"
#include "cpu/kernel_table.h"

namespace cnnfast::cpu {

struct ConvGeometry {
  int64_t images, in_channels, out_channels, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t out_height, out_width;
  Activation activation;
  ConvAlgorithm algorithm{};
  bool far_input = false;  // a part of a larger input that does not stay in the second-level cache
  bool bfloat16 = false;   // values come and go in it: where weights change, tiles may be larger

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  bool depthwise() const { return groups > 1 && in_channels == groups && out_channels == groups; }
  // Groups of which a vector of channels holds several, computed side by side (see DepthwiseCall).
  bool narrow_groups() const;
  int64_t depth() const { return kernel_h * kernel_w * group_in(); }
  // Of Winograd's algorithm: kernels of one row or column, whose tiles are as high or as wide; output pixels
  // of a tile; products of a tile for one input and one output channel, and weights of theirs.
  bool line() const { return kernel_h != kernel_w; }
  int64_t tile_height() const { return line() && kernel_h == 1 ? 1 : algorithm.tile; }
  int64_t tile_width() const { return line() && kernel_w == 1 ? 1 : algorithm.tile; }
  int64_t products() const { return line() ? algorithm.points : algorithm.points * algorithm.points; }
  int64_t kernel_products() const {
    return line() ? algorithm.points : algorithm.kernel_points() * algorithm.kernel_points();
  }
  double flops() const;          // two per multiply-add
  int64_t packed_bytes() const;  // of the weights as the kernels read them
};

// How the output channels of one group are cut into panels for the active instruction set.
struct Panels {
  int64_t vectors;  // per panel; the last panel may have fewer
  int64_t count;
  int64_t lanes() const { return vectors * kernels().vector_width; }
  static Panels of(int64_t channels);       // of direct convolutions
  static Panels of(const ConvGeometry& g);  // of its algorithm
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Rows, or columns, of tiles over so many output rows, of which every dilation-th is in the same tile.
int64_t tile_rows(int64_t rows, int64_t tile, int64_t dilation);
// Tiles of its Winograd algorithm over all images.
int64_t winograd_tiles(const ConvGeometry& g);

}  // namespace cnnfast::cpu
