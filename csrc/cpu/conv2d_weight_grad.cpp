// conv2d_weight_grad on the CPU: float32 through the kernel table, other types and groups through ATen.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/conv_weight_grad.h"
#include "cpu/depthwise_weight_grad.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/paired_weight_grad.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/weight_sums.h"
#include "cpu/widened.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {
namespace {

// What is compiled, see kernels/winograd_gradient.inl: gradients of 3x3 kernels by tiles of 3x3 and 4x4
// pixels, those of 5x5 ones by tiles of 2x2 and 4x4; and tiles of 6x6 pixels for both, which err by 5e-5 of
// the largest value at most, for images in bfloat16.
constexpr std::array<ConvAlgorithm, 6> kWinograd{{{5, 3}, {6, 4}, {6, 2}, {8, 4}, {8, 6}, {10, 6}}};
constexpr int64_t kLargestFloatTile = 4;
// Transformed tiles of one strip should stay in the second-level cache where the sums do.
constexpr int64_t kStripBytes = 640 * 1024;
constexpr int64_t kNearSumBytes = 640 * 1024;
// Else they are read from the next cache, for every block of sums.
constexpr int64_t kLongStripBytes = 6 << 20;
constexpr int64_t kLeastTiles = 32;
// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;
// Groups of fewer channels would leave most lanes of a vector empty.
constexpr int64_t kLeastGroup = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tiles_of(const ConvGeometry& g, const ConvAlgorithm& a) {
  return g.images * divide_up(g.out_height, a.tile) * divide_up(g.out_width, a.tile);
}

}  // namespace

int64_t gradient_strip_tiles(const ConvGeometry& g, int64_t in) {
  const ConvAlgorithm& a = g.algorithm;
  const int64_t width = kernels().vector_width, points = a.points * a.points;
  const int64_t padded_in = divide_up(in, width) * width,
                padded_out = divide_up(g.out_channels, width) * width;
  const int64_t tile_bytes = points * 4 * (padded_in + padded_out), tiles = tiles_of(g, a);
  const int64_t bytes = points * 4 * padded_in * padded_out > kNearSumBytes ? kLongStripBytes : kStripBytes;
  const int64_t strips = divide_up(tiles, std::max(kLeastTiles, bytes / tile_bytes));
  return divide_up(tiles, strips);
}

namespace {

// A vector of sums from the third-level cache and back.
constexpr double kSumCycles = 16;

ConvGeometry by(ConvGeometry g, const ConvAlgorithm& a) {
  g.algorithm = a;
  return g;
}

// In cycles of multiply-adds of a vector (docs/performance.md).
double cost(const ConvGeometry& g, const ConvAlgorithm& a) {
  const auto width = static_cast<double>(kernels().vector_width);
  const auto in = static_cast<double>(g.in_channels), out = static_cast<double>(g.out_channels) / width;
  const auto pixels = static_cast<double>(g.images * g.out_height * g.out_width);
  if (a.direct()) return 1.15 * pixels * static_cast<double>(g.kernel_h * g.kernel_w) * in * out;
  const auto points = static_cast<double>(a.points * a.points), tiles = static_cast<double>(tiles_of(g, a));
  // Sums that leave the second-level cache are read and written again for every strip.
  const bool near = points * 4 * in * out * width <= kNearSumBytes;
  const double strips = near ? 0 : tiles / static_cast<double>(gradient_strip_tiles(by(g, a), g.in_channels));
  return points * (1.2 * tiles * in * out + tiles * (12.5 * in / width + 22 * out) +
                   (4.0 + kSumCycles * strips) * in * out);
}

}  // namespace

ConvAlgorithm gradient_algorithm(const ConvGeometry& g) {
  ConvAlgorithm best{};
  if (g.kernel_w != g.kernel_h || g.stride_h != 1 || g.stride_w != 1 || g.dilation_h != 1 ||
      g.dilation_w != 1)
    return best;
  for (const ConvAlgorithm& a : kWinograd) {
    if (a.points - a.tile + 1 != g.kernel_h || (a.tile > kLargestFloatTile && !g.bfloat16)) continue;
    if (cost(g, a) < cost(g, best)) best = a;
  }
  return best;
}

namespace {

// The input in memory with what tiles or taps read around it, as a view of the first tap.
View bring_in(const at::Tensor& input, const Conv2dParams& p, Overreach beyond, at::Tensor& storage) {
  const int64_t ph = p.padding[0], pw = p.padding[1];
  View v = with_border_kept(input, {ph, pw, ph + beyond.bottom, pw + beyond.right}, storage);
  v.data -= ph * v.row + pw * v.pixel;
  return v;
}

bool rows_touch(const View& v, const ConvGeometry& g) {
  return v.row == g.out_width * v.pixel && v.image == g.out_height * v.row;
}

// A 1x1 kernel does not ask where a row or an image ends: all of them as one row, which strips do not cut.
void join_rows(const ConvGeometry& g, WeightGradCall& call) {
  const bool pointwise = g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1;
  if (!pointwise || !rows_touch(call.input, g) || !rows_touch(call.grad, g)) return;
  call.width = call.images * call.height * call.width;
  call.images = call.height = 1;
}

void run_direct(const ConvGeometry& g, const View& input, const View& grad, const at::Tensor& weight_grad) {
  const Panels panels = Panels::of(g.out_channels);
  const std::vector<int64_t> offset = position_offsets(g, input);
  float* sums = thread_scratch(ScratchSlot::kSums, g.packed_bytes() / static_cast<int64_t>(sizeof(float)));
  WeightGradCall call{input,      grad,          g.images,  g.out_height,   g.out_width,    g.stride_h,
                      g.stride_w, offset.data(), g.depth(), g.out_channels, panels.vectors, sums};
  join_rows(g, call);
  const int64_t units = kernels().gradient_units(g.out_channels, panels.vectors, g.depth());
  parallel_team(g.flops() < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    const auto [begin, end] = share(units, 1, thread, team);
    if (begin < end) kernels().weight_gradient(call, begin, end);
    barrier.wait();
    const auto [first, last] = share(g.in_channels, 1, thread, team);
    unpack_sums(g, panels, sums, weight_grad.data_ptr<float>(), weight_strides(weight_grad), first, last);
  });
}

void run_winograd(const ConvGeometry& g, const View& input, const View& grad, const at::Tensor& weight_grad) {
  const int64_t width = kernels().vector_width;
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.in_channels, std::min<int64_t>(width, 8), thread, team);
    if (begin >= end) return;
    const int64_t channels = end - begin;
    WinogradGradCall call{};
    call.input = input;
    call.grad = grad;
    call.images = g.images;
    call.height = g.out_height;
    call.width = g.out_width;
    call.kernel = g.kernel_h;
    call.points = g.algorithm.points;
    call.in_channels = g.in_channels;
    call.channels = g.out_channels;
    call.panel_vectors = Panels::of(g.out_channels).vectors;
    call.strip_tiles = gradient_strip_tiles(g, channels);
    call.scratch =
        thread_scratch(ScratchSlot::kWinograd, kernels().winograd_gradient_scratch(call, channels));
    if (call.strip_tiles < tiles_of(g, g.algorithm))
      call.sums = thread_scratch(ScratchSlot::kSums, kernels().winograd_gradient_sums(call, channels));
    call.weight_grad = weight_grad.data_ptr<float>();
    call.strides = weight_strides(weight_grad);
    kernels().winograd_gradient(call, begin, end);
  });
}

}  // namespace

bool serves_weight_gradient(const at::Tensor& weight, int64_t groups) {
  return is_plain_float(weight) &&
         (groups == 1 || std::min(weight.size(0) / groups, weight.size(1)) >= kLeastGroup);
}

at::Tensor weight_gradient(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                           const Conv2dParams& p) {
  at::Tensor weight_grad = gradient_empty_like(weight);
  if (grad_output.numel() == 0) return weight_grad.zero_();
  ConvGeometry g = group_geometry(grad_output, weight, p);
  g.bfloat16 = input.scalar_type() == at::kBFloat16;
  g.algorithm = gradient_algorithm(g);
  const bool winograd = !g.algorithm.direct();
  const Overreach beyond = overreach(g);
  at::Tensor input_storage, grad_storage;
  const View in = bring_in(input, p, beyond, input_storage);
  const View grad = with_border_kept(grad_output, {}, grad_storage);
  for (int64_t group = 0; group < p.groups; ++group) {
    View own_in = in, own_grad = grad;
    own_in.data += group * g.in_channels;
    own_grad.data += group * g.out_channels;
    (winograd ? run_winograd : run_direct)(g, own_in, own_grad,
                                           weight_grad.narrow(0, group * g.out_channels, g.out_channels));
  }
  return weight_grad;
}

namespace {

at::Tensor widened_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                               const at::Tensor& weight, const Conv2dParams& p) {
  const at::Tensor wide = widened_kept(weight);
  if (serves_weight_gradient(wide, p.groups))
    return weight_gradient(widened_kept(grad_output), input, wide, p);
  return conv2d_weight_grad_composite(widened_kept(grad_output), widened_kept(input), wide, p.stride,
                                      p.padding, p.dilation, p.groups);
}

at::Tensor conv2d_weight_grad_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation, int64_t groups) {
  const bool narrow = takes_widened(grad_output, {input});
  const Conv2dParams p{stride, padding, dilation, groups};
  if (serves_depthwise_gradient(grad_output, input, weight, groups)) {
    check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight, p);
    return rounded_to(weight.scalar_type(), depthwise_weight_grad(grad_output, input, weight, p));
  }
  if (narrow) check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight, p);
  if (narrow && multiplies_pairs(conv_geometry(input, weight, p, grad_output.sizes()))) {
    const at::Tensor found = paired_weight_grad(grad_output, input, weight, p);
    if (found.defined()) return found;
  }
  // With few channels in a group products of widened values are as good.
  if (narrow) return rounded_to(weight.scalar_type(), widened_weight_grad(grad_output, input, weight, p));
  if (!is_plain_float(grad_output) || !is_plain_float(input) || !serves_weight_gradient(weight, groups))
    return conv2d_weight_grad_composite(grad_output, input, weight, stride, padding, dilation, groups);
  check_conv2d_gradient("conv2d_weight_grad", grad_output, input, weight, p);
  return weight_gradient(grad_output, input, weight, p);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d_weight_grad", TORCH_FN(conv2d_weight_grad_cpu)); }

}  // namespace cnnfast::cpu
