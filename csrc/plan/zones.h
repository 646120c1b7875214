// Dilated kernels as large as the image: most of their taps lie in the padding, for most of the pixels. The
// output is cut into zones, each of pixels that the same taps serve, and computed by those alone.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/conv_geometry.h"

namespace cnnfast::plan {

// Output rows, or columns, [begin, end), and the taps of the kernel that reach the image from there.
struct Reach {
  int64_t begin, end, first_tap, taps;
};

struct Zone {
  Reach rows, columns;
};

// Input rows and columns, and what lies in front of them.
struct PaddedImage {
  int64_t height, width, pad_top, pad_left;
};

// Empty where there are pixels that no tap serves.
std::vector<Zone> zones_of(const cpu::ConvGeometry& geometry, const PaddedImage& image);
// Whether computing by zones takes less time than the geometry's own algorithm, or, where `pairs`, than
// products of pairs.
bool gains_by_zones(const cpu::ConvGeometry& geometry, const std::vector<Zone>& zones, bool pairs);
// The convolution of one zone.
cpu::ConvGeometry zone_geometry(const cpu::ConvGeometry& geometry, const Zone& zone);

}  // namespace cnnfast::plan
