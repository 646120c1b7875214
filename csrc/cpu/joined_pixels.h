// Pixels side by side that are as good as one of more channels, under a kernel that is wider by their
// distance and steps over all of them: vectors of few channels are fuller, and there are fewer products.
#pragma once
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// How many, for vectors of so many lanes. Distances of pixels are places of the kernel only without dilation.
inline int64_t joined_pixels(const ConvGeometry& g, int64_t lanes) {
  if (g.dilation_w != 1 || g.stride_w >= g.kernel_w) return 1;
  int64_t pixels = lanes / g.out_channels;
  while (pixels > 1 && g.out_width % pixels) --pixels;
  return pixels > 1 ? pixels : 1;
}

inline ConvGeometry joined(ConvGeometry g, int64_t pixels) {
  g.out_channels *= pixels;
  g.kernel_w += (pixels - 1) * g.stride_w;
  g.stride_w *= pixels;
  g.out_width /= pixels;
  return g;
}

}  // namespace cnnfast::cpu
