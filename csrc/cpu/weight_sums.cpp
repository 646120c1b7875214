#include "cpu/weight_sums.h"

#include <algorithm>

#include "cpu/pack_cache.h"

namespace cnnfast::cpu {
namespace {

// Input channels that are moved at once: what is read and written stays in the first-level cache.
constexpr int64_t kUnpackBlock = 16;

}  // namespace

ConvGeometry group_geometry(const at::Tensor& grad, const at::Tensor& weight, const Conv2dParams& p) {
  return {grad.size(0),
          weight.size(1),
          weight.size(0) / p.groups,
          1,
          weight.size(2),
          weight.size(3),
          p.stride[0],
          p.stride[1],
          p.dilation[0],
          p.dilation[1],
          grad.size(2),
          grad.size(3),
          {}};
}

std::vector<int64_t> position_offsets(const ConvGeometry& g, const View& input) {
  std::vector<int64_t> offset;
  for (int64_t y = 0; y < g.kernel_h; ++y)
    for (int64_t x = 0; x < g.kernel_w; ++x)
      for (int64_t i = 0; i < g.in_channels; ++i)
        offset.push_back(y * g.dilation_h * input.row + x * g.dilation_w * input.pixel + i);
  return offset;
}

void unpack_sums(const ConvGeometry& g, const Panels& panels, const float* sums, float* to,
                 WeightStrides strides, int64_t begin, int64_t end) {
  const int64_t width = kernels().vector_width, in = g.in_channels;
  for (int64_t first = 0; first < g.out_channels; first += panels.lanes()) {
    const int64_t used = std::min(panels.lanes(), g.out_channels - first);
    const int64_t stored = (used + width - 1) / width * width;
    for (int64_t i = begin; i < end; i += kUnpackBlock)
      kernels().scatter_kernels({sums + i * stored, stored, in * stored, g.kernel_h, g.kernel_w,
                                 std::min(kUnpackBlock, end - i), used,
                                 to + first * strides.out + i * strides.in, strides.out, strides.in,
                                 strides.row, strides.column});
    sums += g.depth() * stored;
  }
}

}  // namespace cnnfast::cpu
