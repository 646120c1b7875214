#include "cpu/conv_job.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Weights of one pass over a block of pixels: small enough to stay in the second-level cache, long enough
// that reading and writing the partial sums between passes costs little.
constexpr int64_t kChunkBytes = 128 * 1024;
// Input of a block of pixels should stay in the second-level cache while all panels pass over it.
constexpr int64_t kBlockBytes = 192 * 1024;
// Rows per thread of a depthwise convolution from which on an uneven share matters little.
constexpr int64_t kManyRows = 16;

}  // namespace

ConvJob::ConvJob(const ConvGeometry& geometry, View input, View output, View residual, Prologue prologue)
    : g_(geometry),
      input_(input),
      output_(output),
      residual_(residual),
      prologue_(prologue),
      panels_(Panels::of(g_)) {
  const bool adjacent = g_.dilation_w == 1 && input.pixel == g_.group_in() && !g_.narrow_groups();
  const int64_t columns = adjacent ? 1 : g_.kernel_w;
  length_ = adjacent ? g_.kernel_w * g_.group_in() : g_.group_in();
  for (int64_t y = 0; y < g_.kernel_h; ++y)
    for (int64_t x = 0; x < columns; ++x)
      tap_.push_back(y * g_.dilation_h * input.row + x * g_.dilation_w * input.pixel);
}

void ConvJob::run(const PackedConv& packed, int thread, int team) const {
  run_at(packed, input_.data, output_.data, residual_.data, thread, team);
}

void ConvJob::run_at(const PackedConv& packed, const float* input, float* output, const float* residual,
                     int thread, int team) const {
  if (g_.narrow_groups())
    run_depthwise(packed, input, output, residual, thread, team);
  else if (!g_.algorithm.direct())
    run_winograd(packed, input, output, residual, thread, team);
  else
    run_dense(packed, input, output, residual, thread, team);
}

// Where weights outweigh the pixels (late layers, linear layers), each thread takes its own output channels
// and reads its part of the weights once; else each takes its own pixels.
bool ConvJob::split_by_channels(int team) const {
  if (team == 1 || panels_.count * g_.groups < team) return false;
  const double pixels = static_cast<double>(g_.images) * g_.out_height * g_.out_width;
  if (pixels < team * kernels().tile_pixels(panels_.vectors)) return true;
  const double weight_floats = static_cast<double>(g_.out_channels) * g_.depth();
  const double pixel_floats = pixels * (g_.in_channels * g_.stride_h * g_.stride_w + g_.out_channels);
  const double uneven = static_cast<double>(panels_.count % team) / panels_.count;
  return weight_floats > pixel_floats && uneven < 0.1;
}

bool ConvJob::divides_channels(int team) const {
  if (g_.depthwise()) return false;
  if (g_.algorithm.direct()) return split_by_channels(team);
  return split_tiles_by_channels(winograd_tiles(g_), team);
}

std::pair<int64_t, int64_t> ConvJob::channels_of(int thread, int team) const {
  const auto [begin, end] = share(panels_.count * g_.groups, 1, thread, team);
  const auto first_of = [&](int64_t unit) {
    return unit / panels_.count * g_.group_out() + unit % panels_.count * panels_.lanes();
  };
  return {first_of(begin), first_of(end)};
}

int64_t ConvJob::first_weight(int thread, int team) const {
  if (g_.narrow_groups() || !g_.algorithm.direct() || !split_by_channels(team)) return 0;
  const int64_t unit = share(panels_.count * g_.groups, 1, thread, team).first;
  const int64_t padded = round_up(g_.group_out(), kernels().vector_width);
  return (unit / panels_.count * padded + unit % panels_.count * panels_.lanes()) * g_.depth();
}

// All but the memory.
ConvCall ConvJob::dense_call() const {
  ConvCall call{};
  call.images = g_.images;
  call.height = g_.out_height;
  call.width = g_.out_width;
  call.stride_h = g_.stride_h;
  call.stride_w = g_.stride_w;
  call.tap = tap_.data();
  call.taps = static_cast<int64_t>(tap_.size());
  call.length = length_;
  call.channels = g_.group_out();
  call.panel_vectors = panels_.vectors;
  call.activation = g_.activation;
  call.far_input = g_.far_input;
  call.chunk = std::max<int64_t>(16, kChunkBytes / (panels_.lanes() * static_cast<int64_t>(sizeof(float))));
  const int64_t tile = kernels().tile_pixels(panels_.vectors);
  const int64_t pixel_bytes = g_.group_in() * g_.stride_h * g_.stride_w * static_cast<int64_t>(sizeof(float));
  call.block_pixels = round_up(std::clamp<int64_t>(kBlockBytes / pixel_bytes, 2 * tile, 4096), tile);
  return call;
}

void ConvJob::run_pixels(const PackedConv& packed, const float* input, float* output, int64_t begin,
                         int64_t end, bool far_input) const {
  run_part(packed, input, output, nullptr, {begin, end, 0, panels_.count, far_input});
}

void ConvJob::run_part(const PackedConv& packed, const float* input, float* output, const float* residual,
                       const ConvPart& part) const {
  ConvCall call = dense_call();
  call.input = {const_cast<float*>(input), input_.image, input_.row, input_.pixel};
  call.output = {output, output_.image, output_.row, output_.pixel};
  call.residual = {const_cast<float*>(residual), residual_.image, residual_.row, residual_.pixel};
  call.weight = packed.weight;
  call.scale = packed.scale.size() ? packed.scale.data() : nullptr;
  call.shift = packed.shift.size() ? packed.shift.data() : nullptr;
  call.far_input = part.far_input;
  kernels().conv(call, part.pixel_begin, part.pixel_end, part.panel_begin, part.panel_end);
}

void ConvJob::run_dense(const PackedConv& packed, const float* input, float* output, const float* residual,
                        int thread, int team) const {
  const int64_t in = g_.group_in(), out = g_.group_out(), width = kernels().vector_width;
  ConvCall call = dense_call();
  const int64_t tile = kernels().tile_pixels(panels_.vectors);
  const int64_t pixels = g_.images * g_.out_height * g_.out_width;
  const bool by_channels = split_by_channels(team);
  const auto [pixel_begin, pixel_end] =
      by_channels ? std::pair<int64_t, int64_t>{0, pixels} : share(pixels, tile, thread, team);
  const auto [unit_begin, unit_end] = by_channels ? share(panels_.count * g_.groups, 1, thread, team)
                                                  : std::pair<int64_t, int64_t>{0, panels_.count * g_.groups};
  if (pixel_begin >= pixel_end) return;
  for (int64_t group = 0; group < g_.groups; ++group) {
    const int64_t first = std::max(unit_begin, group * panels_.count) - group * panels_.count;
    const int64_t last = std::min(unit_end, (group + 1) * panels_.count) - group * panels_.count;
    if (first >= last) continue;
    const int64_t padded = round_up(out, width);
    call.input = {const_cast<float*>(input) + group * in, input_.image, input_.row, input_.pixel};
    call.output = {output + group * out, output_.image, output_.row, output_.pixel};
    call.residual = {residual ? const_cast<float*>(residual) + group * out : nullptr, residual_.image,
                     residual_.row, residual_.pixel};
    call.weight = packed.weight + group * padded * g_.depth();
    call.scale = packed.scale.size() ? packed.scale.data() + group * padded : nullptr;
    call.shift = packed.shift.size() ? packed.shift.data() + group * padded : nullptr;
    kernels().conv(call, pixel_begin, pixel_end, first, last);
  }
}

// All but the memory.
DepthwiseCall ConvJob::depthwise_call() const {
  DepthwiseCall call{};
  call.height = g_.out_height;
  call.width = g_.out_width;
  call.stride_h = g_.stride_h;
  call.stride_w = g_.stride_w;
  call.tap = tap_.data();
  call.taps = static_cast<int64_t>(tap_.size());
  call.row_taps = g_.dilation_w == 1 ? g_.kernel_w : 0;
  call.group = g_.group_in();
  call.channels = g_.out_channels;
  call.activation = g_.activation;
  return call;
}

void ConvJob::run_depthwise_part(const PackedConv& packed, const float* input, float* output,
                                 const float* residual, int64_t first, int64_t last, int64_t row_begin,
                                 int64_t row_end) const {
  DepthwiseCall call = depthwise_call();
  call.input = {const_cast<float*>(input), input_.image, input_.row, input_.pixel};
  call.output = {output, output_.image, output_.row, output_.pixel};
  call.residual = {const_cast<float*>(residual), residual_.image, residual_.row, residual_.pixel};
  call.weight = packed.weight + first * g_.depth();
  call.scale = packed.scale.size() ? packed.scale.data() + first : nullptr;
  call.shift = packed.shift.size() ? packed.shift.data() + first : nullptr;
  call.channels = last - first;
  kernels().depthwise(call, row_begin, row_end);
}

// Threads take rows, or vectors of channels where there are few rows for each.
void ConvJob::run_depthwise(const PackedConv& packed, const float* input, float* output,
                            const float* residual, int thread, int team) const {
  const int64_t rows = g_.images * g_.out_height, width = kernels().vector_width;
  const bool by_channels = rows < kManyRows * team && g_.out_channels >= 2 * team * width;
  const auto [row_begin, row_end] =
      by_channels ? std::pair<int64_t, int64_t>{0, rows} : share(rows, 1, thread, team);
  const auto [first, last] = by_channels ? share(g_.out_channels, width, thread, team)
                                         : std::pair<int64_t, int64_t>{0, g_.out_channels};
  run_depthwise_part(packed, input + first, output + first, residual ? residual + first : nullptr, first,
                     last, row_begin, row_end);
}

}  // namespace cnnfast::cpu
