// conv2d_weight_grad on the CPU: float32 through the kernel table, other types and groups through ATen.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/conv_job.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kPoints = 6;
// Gradients of a tile; 0: this kernel has none.
int64_t tile_of(int64_t kernel) { return kernel == 3 ? 4 : kernel == 5 ? 2 : 0; }
// Transformed tiles of one strip should stay in the second-level cache.
constexpr int64_t kStripBytes = 640 * 1024;
// With fewer tiles in a strip, reading and writing the sums would take longer than the products.
constexpr int64_t kLeastTiles = 32;
// Sums of this size stay in the last-level cache.
constexpr double kCachedBytes = 16e6;
// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;
// Groups of fewer channels would leave most lanes of a vector empty.
constexpr int64_t kLeastGroup = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

ConvGeometry geometry_of(const at::Tensor& grad, const at::Tensor& weight, const Conv2dParams& p) {
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

// Winograd's algorithm where tiles are well filled and products outweigh the transforms, in cycles of
// multiply-adds (docs/performance.md).
bool takes_winograd(const ConvGeometry& g) {
  const int64_t tile = tile_of(g.kernel_h);
  if (tile == 0 || g.kernel_w != g.kernel_h || g.stride_h != 1 || g.stride_w != 1 || g.dilation_h != 1 ||
      g.dilation_w != 1)
    return false;
  const auto width = static_cast<double>(kernels().vector_width);
  const auto in = static_cast<double>(g.in_channels), out = static_cast<double>(g.out_channels) / width;
  const auto pixels = static_cast<double>(g.images * g.out_height * g.out_width);
  const auto tiles =
      static_cast<double>(g.images * divide_up(g.out_height, tile) * divide_up(g.out_width, tile));
  const double transforms = tiles * (450.0 * in / width + 800.0 * out) + 300.0 * in * out;
  // Sums are read and written once per strip.
  const double sum_bytes = kPoints * kPoints * in * out * width * 4;
  const double traffic = (2 * tiles / kLeastTiles + 1) * sum_bytes * (sum_bytes < kCachedBytes ? 0.05 : 0.3);
  return 1.2 * tiles * 36 * in * out + transforms + traffic <
         1.15 * pixels * static_cast<double>(g.kernel_h * g.kernel_w) * in * out;
}

// The input in memory with what tiles or taps read around it, as a view of the first tap.
View bring_in(const at::Tensor& input, const Conv2dParams& p, Overreach beyond, at::Tensor& storage) {
  const int64_t ph = p.padding[0], pw = p.padding[1];
  View v = with_border(input, {ph, pw, ph + beyond.bottom, pw + beyond.right}, storage);
  v.data -= ph * v.row + pw * v.pixel;
  return v;
}

// Input channels and output channels that are moved at once: what is read stays in the first-level cache, and
// what is written lies side by side in a contiguous weight.
constexpr int64_t kUnpackBlock = 16;

// From the order of packed weights to the tensor's, input channels [begin, end).
void unpack(const ConvGeometry& g, const Panels& panels, const float* sums, const at::Tensor& to,
            int64_t begin, int64_t end) {
  const int64_t width = kernels().vector_width, in = g.in_channels, taps = g.kernel_h * g.kernel_w;
  const int64_t out_stride = to.stride(0), in_stride = to.stride(1);
  float* result = to.data_ptr<float>();
  std::vector<int64_t> place;
  for (int64_t tap = 0; tap < taps; ++tap)
    place.push_back(tap / g.kernel_w * to.stride(2) + tap % g.kernel_w * to.stride(3));
  for (int64_t first = 0; first < g.out_channels; first += panels.lanes()) {
    const int64_t used = std::min(panels.lanes(), g.out_channels - first);
    const int64_t stored = divide_up(used, width) * width;
    for (int64_t i0 = begin; i0 < end; i0 += kUnpackBlock)
      for (int64_t lane0 = 0; lane0 < used; lane0 += kUnpackBlock)
        for (int64_t lane = lane0; lane < std::min(used, lane0 + kUnpackBlock); ++lane)
          for (int64_t i = i0; i < std::min(end, i0 + kUnpackBlock); ++i) {
            float* kernel = result + (first + lane) * out_stride + i * in_stride;
            for (int64_t tap = 0; tap < taps; ++tap)
              kernel[place[tap]] = sums[(tap * in + i) * stored + lane];
          }
    sums += g.depth() * stored;
  }
}

std::vector<int64_t> offsets_of(const ConvGeometry& g, const View& input) {
  std::vector<int64_t> offset;
  for (int64_t y = 0; y < g.kernel_h; ++y)
    for (int64_t x = 0; x < g.kernel_w; ++x)
      for (int64_t i = 0; i < g.in_channels; ++i)
        offset.push_back(y * g.dilation_h * input.row + x * g.dilation_w * input.pixel + i);
  return offset;
}

void run_direct(const ConvGeometry& g, const View& input, const View& grad, const at::Tensor& weight_grad) {
  const Panels panels = Panels::of(g.out_channels);
  const std::vector<int64_t> offset = offsets_of(g, input);
  float* sums = thread_scratch(ScratchSlot::kSums, g.packed_bytes() / static_cast<int64_t>(sizeof(float)));
  const WeightGradCall call{input,      grad,          g.images,  g.out_height,   g.out_width,    g.stride_h,
                            g.stride_w, offset.data(), g.depth(), g.out_channels, panels.vectors, sums};
  const int64_t units = kernels().gradient_units(g.out_channels, panels.vectors, g.depth());
  parallel_team(g.flops() < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    const auto [begin, end] = share(units, 1, thread, team);
    if (begin < end) kernels().weight_gradient(call, begin, end);
    barrier.wait();
    const auto [first, last] = share(g.in_channels, 1, thread, team);
    unpack(g, panels, sums, weight_grad, first, last);
  });
}

void run_winograd(const ConvGeometry& g, const View& input, const View& grad, const at::Tensor& weight_grad) {
  const int64_t width = kernels().vector_width, out = divide_up(g.out_channels, width) * width;
  float* sums = thread_scratch(ScratchSlot::kSums, kPoints * kPoints * g.in_channels * out);
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.in_channels, std::min<int64_t>(width, 8), thread, team);
    if (begin >= end) return;
    WinogradGradCall call{};
    call.input = input;
    call.grad = grad;
    call.images = g.images;
    call.height = g.out_height;
    call.width = g.out_width;
    call.kernel = g.kernel_h;
    call.in_channels = g.in_channels;
    call.channels = g.out_channels;
    call.panel_vectors = Panels::of(g.out_channels).vectors;
    const int64_t tile_bytes = kPoints * kPoints * 4 * (divide_up(end - begin, width) * width + out);
    call.strip_tiles = std::clamp<int64_t>(kStripBytes / tile_bytes, kLeastTiles, 64);
    call.sums = sums;
    call.scratch =
        thread_scratch(ScratchSlot::kWinograd, kernels().winograd_gradient_scratch(call, end - begin));
    call.weight_grad = weight_grad.data_ptr<float>();
    call.weight_out = weight_grad.stride(0);
    call.weight_in = weight_grad.stride(1);
    call.weight_row = weight_grad.stride(2);
    call.weight_column = weight_grad.stride(3);
    kernels().winograd_gradient(call, begin, end);
  });
}

at::Tensor conv2d_weight_grad_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation, int64_t groups) {
  const bool filled = groups == 1 || std::min(weight.size(0) / groups, weight.size(1)) >= kLeastGroup;
  if (!is_plain_float(grad_output) || !is_plain_float(input) || !filled)
    return conv2d_weight_grad_composite(grad_output, input, weight, stride, padding, dilation, groups);
  const Conv2dParams p{stride, padding, dilation, groups};
  check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight, p);
  at::Tensor weight_grad = at::empty_like(weight);
  if (grad_output.numel() == 0) return weight_grad.zero_();
  const ConvGeometry g = geometry_of(grad_output, weight, p);
  const bool winograd = takes_winograd(g);
  Overreach beyond;
  if (const int64_t tile = winograd ? tile_of(g.kernel_h) : 0)
    beyond = {divide_up(g.out_height, tile) * tile - g.out_height,
              divide_up(g.out_width, tile) * tile - g.out_width};
  at::Tensor input_storage, grad_storage;
  const View in = bring_in(input, p, beyond, input_storage);
  const View grad = with_border(grad_output, {}, grad_storage);
  for (int64_t group = 0; group < groups; ++group) {
    View own_in = in, own_grad = grad;
    own_in.data += group * g.in_channels;
    own_grad.data += group * g.out_channels;
    (winograd ? run_winograd : run_direct)(g, own_in, own_grad,
                                           weight_grad.narrow(0, group * g.out_channels, g.out_channels));
  }
  return weight_grad;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad_cpu)); }

}  // namespace cnnfast::cpu
