#include "cpu/weight_sums.h"

#include <algorithm>

#include "cpu/pack_cache.h"

namespace cnnfast::cpu {
namespace {

// Input channels that are moved at once: what is read and written stays in the first-level cache.
constexpr int64_t kUnpackBlock = 16;

}  // namespace

void unpack_sums(const ConvGeometry& g, const Panels& panels, const float* sums, const at::Tensor& to,
                 int64_t begin, int64_t end) {
  const int64_t width = kernels().vector_width, in = g.in_channels;
  const WeightStrides strides = weight_strides(to);
  float* result = to.data_ptr<float>();
  for (int64_t first = 0; first < g.out_channels; first += panels.lanes()) {
    const int64_t used = std::min(panels.lanes(), g.out_channels - first);
    const int64_t stored = (used + width - 1) / width * width;
    for (int64_t i = begin; i < end; i += kUnpackBlock)
      kernels().scatter_kernels({sums + i * stored, stored, in * stored, g.kernel_h, g.kernel_w,
                                 std::min(kUnpackBlock, end - i), used,
                                 result + first * strides.out + i * strides.in, strides.out, strides.in,
                                 strides.row, strides.column});
    sums += g.depth() * stored;
  }
}

}  // namespace cnnfast::cpu
