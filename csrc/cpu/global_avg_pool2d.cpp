// global_avg_pool2d on the CPU: float32 through the kernel table, other types through ATen.
#include "ops/global_avg_pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 15;
// Channels summed by one thread at a time, and pixels summed in float32 before they join a float64 sum.
constexpr int64_t kChannelBlock = 64, kPixelsPerPart = 256;

// The mean of `channels` (one block at most) over an image, rows of `width` pixels.
void mean_of_block(const float* image, const View& v, int64_t height, int64_t width, int64_t channels,
                   float* out) {
  double sums[kChannelBlock] = {};
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; x += kPixelsPerPart) {
      float part[kChannelBlock] = {};
      kernels().column_sum(image + y * v.row + x * v.pixel, v.pixel, std::min(kPixelsPerPart, width - x),
                           channels, nullptr, part);
      for (int64_t c = 0; c < channels; ++c) sums[c] += part[c];
    }
  for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<float>(sums[c] / (height * width));
}

at::Tensor global_avg_pool2d_cpu(const at::Tensor& input) {
  if (takes_widened(input)) {
    check_global_avg_pool2d(input);
    return rounded_to(input.scalar_type(), global_avg_pool2d_cpu(widened(input)));
  }
  if (!is_plain_float(input)) return global_avg_pool2d_composite(input);
  check_global_avg_pool2d(input);
  const int64_t images = input.size(0), channels = input.size(1);
  const at::Tensor output =
      at::empty({images, channels, 1, 1}, input.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const at::Tensor source = channels_adjacent(input) ? input : channels_last_copy(input);
  const View v = view_of(source);
  // An image whose rows follow one another is one long row.
  const bool one_row = v.row == v.pixel * input.size(3);
  const int64_t height = one_row ? 1 : input.size(2);
  const int64_t width = one_row ? input.size(2) * input.size(3) : input.size(3);
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  float* out = output.data_ptr<float>();
  parallel_team(input.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(images * blocks, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / blocks, first = unit % blocks * kChannelBlock;
      mean_of_block(v.data + n * v.image + first, v, height, width, std::min(kChannelBlock, channels - first),
                    out + n * channels + first);
    }
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("global_avg_pool2d", TORCH_FN(global_avg_pool2d_cpu)); }

}  // namespace cnnfast::cpu
