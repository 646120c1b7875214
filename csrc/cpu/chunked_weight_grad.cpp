#include "cpu/chunked_weight_grad.h"

#include "cpu/aligned_floats.h"
#include "cpu/conv_weight_grad.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kMostSumBytes = 10 << 20;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

ChunkedWeightGradient::ChunkedWeightGradient(const ConvGeometry& geometry, int64_t images)
    : geometry_(geometry), panels_(Panels::of(geometry.out_channels)) {
  geometry_.images = images;
  geometry_.algorithm = gradient_algorithm(geometry_);
  geometry_.images = geometry.images;
}

bool ChunkedWeightGradient::serves() const {
  const int64_t width = kernels().vector_width, points = geometry_.algorithm.points;
  const int64_t in = geometry_.in_channels, out = round_up(geometry_.out_channels, width);
  const int64_t floats = geometry_.algorithm.direct() ? geometry_.kernel_h * geometry_.kernel_w * in * out
                                                      : points * points * round_up(in, width) * out;
  return floats * static_cast<int64_t>(sizeof(float)) <= kMostSumBytes;
}

int64_t ChunkedWeightGradient::tiles() const {
  const int64_t tile = geometry_.algorithm.direct() ? 4 : geometry_.algorithm.tile;
  return divide_up(geometry_.out_height, tile) * divide_up(geometry_.out_width, tile);
}

void ChunkedWeightGradient::add(const View& input, const View& grad, const Step& step, float* to,
                                WeightStrides strides) const {
  geometry_.algorithm.direct() ? add_direct(input, grad, step, to, strides)
                               : add_winograd(input, grad, step, to, strides);
}

void ChunkedWeightGradient::add_winograd(const View& input, const View& grad, const Step& step, float* to,
                                         WeightStrides strides) const {
  WinogradGradCall call{};
  call.input = input;
  call.grad = grad;
  call.images = step.images;
  call.height = step.height;
  call.width = geometry_.out_width;
  call.kernel = geometry_.kernel_h;
  call.points = geometry_.algorithm.points;
  call.in_channels = geometry_.in_channels;
  call.channels = geometry_.out_channels;
  call.panel_vectors = panels_.vectors;
  call.strip_tiles = gradient_strip_tiles(geometry_, geometry_.in_channels);
  call.scratch =
      thread_scratch(ScratchSlot::kWinograd, kernels().winograd_gradient_scratch(call, call.in_channels));
  call.sums = thread_scratch(ScratchSlot::kSums, kernels().winograd_gradient_sums(call, call.in_channels));
  call.weight_grad = to;
  call.strides = strides;
  call.adds = !step.first;
  call.finishes = step.last;
  kernels().winograd_gradient(call, 0, call.in_channels);
}

void ChunkedWeightGradient::add_direct(const View& input, const View& grad, const Step& step, float* to,
                                       WeightStrides strides) const {
  const ConvGeometry& g = geometry_;
  const std::vector<int64_t> offset = position_offsets(g, input);
  float* sums = thread_scratch(ScratchSlot::kSums, g.packed_bytes() / static_cast<int64_t>(sizeof(float)));
  WeightGradCall call{input,           grad,       step.images,   step.height, g.out_width,
                      g.stride_h,      g.stride_w, offset.data(), g.depth(),   g.out_channels,
                      panels_.vectors, sums,       !step.first};
  kernels().weight_gradient(call, 0, kernels().gradient_units(g.out_channels, panels_.vectors, g.depth()));
  if (step.last) unpack_sums(g, panels_, sums, to, strides, 0, g.in_channels);
}

}  // namespace cnnfast::cpu
