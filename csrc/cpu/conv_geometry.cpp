#include "cpu/conv_geometry.h"

#include <algorithm>

namespace cnnfast::cpu {

bool ConvGeometry::narrow_groups() const {
  const int64_t channels = group_in();
  if (groups == 1 || channels != group_out()) return false;
  if (channels == 1) return true;
  return (channels == 4 || channels == 8) && channels <= kernels().vector_width && kernel_w == 3 &&
         dilation_w == 1 && stride_w <= 2;
}

double ConvGeometry::flops() const {
  return 2.0 * static_cast<double>(images) * out_height * out_width * out_channels * depth();
}

int64_t ConvGeometry::packed_bytes() const {
  const int64_t taps = algorithm.direct() ? kernel_h * kernel_w : kernel_products();
  const auto value = static_cast<int64_t>(algorithm.fixed ? sizeof(int16_t) : sizeof(float));
  const int64_t channels = algorithm.first_layer() ? 4 * in_channels : group_in();
  return groups * round_up(group_out(), kernels().vector_width) * channels * taps * value;
}

namespace {

int64_t vectors_of(int64_t channels) {
  const int64_t width = kernels().vector_width;
  return std::max<int64_t>(1, (channels + width - 1) / width);
}

Panels cut_panels(int64_t channels, int64_t most) {
  const int64_t vectors = vectors_of(channels), count = (vectors + most - 1) / most;
  return {(vectors + count - 1) / count, count};
}

}  // namespace

// A panel of one vector loads nearly as much as it computes.
Panels Panels::of(int64_t channels) {
  const auto ends_alone = [&](const Panels& p) { return (vectors_of(channels) - 1) % p.vectors == 0; };
  const Panels usual = cut_panels(channels, kernels().panel_vectors);
  const Panels wide = cut_panels(channels, kernels().max_panel_vectors);
  return ends_alone(usual) && !ends_alone(wide) ? wide : usual;
}

Panels Panels::of(const ConvGeometry& g) {
  return g.algorithm.direct() ? of(g.group_out()) : cut_panels(g.group_out(), kernels().max_winograd_vectors);
}

int64_t tile_rows(int64_t rows, int64_t tile, int64_t dilation) {
  const int64_t apart = (rows + dilation - 1) / dilation;
  return (apart + tile - 1) / tile * dilation;
}

int64_t winograd_tiles(const ConvGeometry& g) {
  return g.images * tile_rows(g.out_height, g.tile_height(), g.dilation_h) *
         tile_rows(g.out_width, g.tile_width(), g.dilation_w);
}

}  // namespace cnnfast::cpu
