#include "cpu/conv_job.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Weights of one pass over a block of pixels: small enough to stay in the second-level cache, long enough
// that reading and writing the partial sums between passes costs little.
constexpr int64_t kChunkBytes = 128 * 1024;
// Input of a block of pixels should stay in the second-level cache while all panels pass over it.
constexpr int64_t kBlockBytes = 192 * 1024;
// A block of Winograd tiles and its products should stay in the second-level cache beside the weights, where
// those do.
constexpr int64_t kTileBytes = 450 * 1024;
constexpr int64_t kNearWeightBytes = 1 << 20;
// Where they do not, they are read once per block: so many tiles, in register blocks, pay for that.
constexpr int64_t kRowBlocks = 3;
// Transformed tiles of one block where weights are transformed on their way into the products, and so many
// blocks at most do that anew.
constexpr int64_t kRawTileFloats = 1 << 19;
constexpr int64_t kRawBlocks = 8;
// Fewer weights are packed by one thread.
constexpr int64_t kSerialFloats = 1 << 16;
// Transformed weights beyond this are read once per thread rather than by every thread.
constexpr int64_t kSharedWeightBytes = 4 << 20;

// Rows per thread of a depthwise convolution from which on an uneven share matters little.
constexpr int64_t kManyRows = 16;

constexpr size_t kHugePage = 2 << 20;

// Input channels that are moved at once: what is read, side by side in some layouts, stays in the first-level
// cache until all of it has been used.
constexpr int64_t kPackBlock = 16;

int64_t tiles_of(const ConvGeometry& g) {
  const int64_t tile = g.algorithm.tile;
  return g.images * ((g.out_height + tile - 1) / tile) * ((g.out_width + tile - 1) / tile);
}

int64_t raw_block(const ConvGeometry& g) {
  const int64_t points = g.algorithm.points * g.algorithm.points;
  return std::max<int64_t>(16, kRawTileFloats / (points * g.group_in()));
}

// Point, panel, input channel, channel in the panel; the input channels [begin, end) of every panel.
void pack_winograd(const ConvGeometry& g, const float* weight, const WeightStrides& strides, int64_t begin,
                   int64_t end, float* to, bool quick) {
  const int64_t in = g.group_in(), out = g.group_out(), width = kernels().vector_width;
  const int64_t lanes = Panels::of(g).lanes(), points = g.algorithm.points * g.algorithm.points;
  WinogradWeightsCall call{};
  call.matrix = kernel_transform(g.algorithm);
  call.points = g.algorithm.points;
  call.size = g.kernel_h;
  call.step = in * round_up(out, width);
  call.quick = quick;
  const int64_t taps = g.kernel_h * g.kernel_w;
  std::vector<float> gathered(static_cast<size_t>(kPackBlock * taps * lanes));
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t first = 0; first < out; first += lanes) {
      const int64_t used = std::min(lanes, out - first), stored = round_up(used, width);
      call.lanes = stored;
      for (int64_t i0 = begin; i0 < end; i0 += kPackBlock) {
        call.inputs = std::min(kPackBlock, end - i0);
        kernels().gather_kernels({weight + (group * out + first) * strides.out + i0 * strides.in, strides.out,
                                  strides.in, strides.row, strides.column, g.kernel_h, g.kernel_w,
                                  call.inputs, used, gathered.data(), taps * stored, stored});
        call.kernels = gathered.data();
        call.output = to + group * points * call.step + first * in + i0 * stored;
        kernels().winograd_weights(call);
      }
    }
}

// Panel, stretch, position in the stretch, channel in the panel; the input channels [begin, end) of every
// panel.
void pack_direct(const ConvGeometry& g, const float* weight, const WeightStrides& strides, int64_t begin,
                 int64_t end, float* to, bool) {
  const int64_t in = g.group_in(), out = g.group_out(), width = kernels().vector_width;
  const int64_t lanes = Panels::of(out).lanes();
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t first = 0; first < out; first += lanes) {
      const int64_t used = std::min(lanes, out - first), stored = round_up(used, width);
      for (int64_t i0 = begin; i0 < end; i0 += kPackBlock)
        kernels().gather_kernels({weight + (group * out + first) * strides.out + i0 * strides.in, strides.out,
                                  strides.in, strides.row, strides.column, g.kernel_h, g.kernel_w,
                                  std::min(kPackBlock, end - i0), used, to + i0 * stored, stored,
                                  in * stored});
      to += g.depth() * stored;
    }
}

// Vector of channels, position, input channel of the group, lane.
void pack_narrow(const ConvGeometry& g, const float* weight, const WeightStrides& strides, float* to) {
  const int64_t width = kernels().vector_width;
  for (int64_t first = 0; first < g.out_channels; first += width)
    for (int64_t y = 0; y < g.kernel_h; ++y)
      for (int64_t x = 0; x < g.kernel_w; ++x)
        for (int64_t i = 0; i < g.group_in(); ++i)
          for (int64_t o = first; o < first + width; ++o)
            *to++ = o < g.out_channels
                        ? weight[o * strides.out + i * strides.in + y * strides.row + x * strides.column]
                        : 0.0f;
}

}  // namespace

float* thread_scratch(ScratchSlot slot, int64_t floats) {
  thread_local std::vector<AlignedFloats> memory;
  while (memory.size() < static_cast<size_t>(ScratchSlot::kCount)) memory.emplace_back(0);
  AlignedFloats& own = memory[static_cast<size_t>(slot)];
  if (own.size() < floats) own = AlignedFloats(floats);
  return own.data();
}

bool ConvGeometry::narrow_groups() const {
  const int64_t channels = group_in();
  if (groups == 1 || channels != group_out()) return false;
  if (channels == 1) return true;
  return (channels == 4 || channels == 8) && channels < kernels().vector_width && kernel_w == 3 &&
         dilation_w == 1 && stride_w <= 2;
}

double ConvGeometry::flops() const {
  return 2.0 * static_cast<double>(images) * out_height * out_width * out_channels * depth();
}

int64_t ConvGeometry::packed_bytes() const {
  const int64_t taps = algorithm.direct() ? kernel_h * kernel_w : algorithm.points * algorithm.points;
  return groups * round_up(group_out(), kernels().vector_width) * group_in() * taps *
         static_cast<int64_t>(sizeof(float));
}

AlignedFloats::AlignedFloats(int64_t count) : size_(count) {
  if (count == 0) return;
  const auto bytes = static_cast<size_t>(count) * sizeof(float);
  void* p = nullptr;
  if (posix_memalign(&p, bytes < kHugePage ? 64 : kHugePage, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
  // Hardware prefetching ends at the border of a page.
  if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_.reset(static_cast<float*>(p));
}

void AlignedFloats::Free::operator()(float* p) const { std::free(p); }

namespace {

Panels cut_panels(int64_t channels, int64_t most) {
  const int64_t width = kernels().vector_width;
  const int64_t vectors = std::max<int64_t>(1, (channels + width - 1) / width);
  const int64_t count = (vectors + most - 1) / most;
  return {(vectors + count - 1) / count, count};
}

}  // namespace

Panels Panels::of(int64_t channels) { return cut_panels(channels, kernels().max_panel_vectors); }

Panels Panels::of(const ConvGeometry& g) {
  return g.algorithm.direct() ? of(g.group_out()) : cut_panels(g.group_out(), kernels().max_winograd_vectors);
}

AlignedFloats pack_weight(const ConvGeometry& g, const float* weight, WeightStrides strides) {
  AlignedFloats packed(packed_floats(g));
  pack_weight_into(g, weight, strides, packed.data());
  return packed;
}

int64_t packed_floats(const ConvGeometry& g) {
  if (g.narrow_groups()) return round_up(g.out_channels, kernels().vector_width) * g.depth();
  return g.packed_bytes() / static_cast<int64_t>(sizeof(float));
}

void pack_weight_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed,
                      bool quick) {
  if (g.narrow_groups()) return pack_narrow(g, weight, strides, packed);
  const auto pack = g.algorithm.direct() ? pack_direct : pack_winograd;
  parallel_team(packed_floats(g) < kSerialFloats ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.group_in(), 1, thread, team);
    pack(g, weight, strides, begin, end, packed, quick);
  });
}

bool takes_raw_weights(const ConvGeometry& g) {
  if (g.algorithm.direct() || g.packed_bytes() / g.groups <= kNearWeightBytes) return false;
  return tiles_of(g) <= kRawBlocks * raw_block(g);
}

AlignedFloats pack_channels(const ConvGeometry& g, const float* values) {
  if (!values) return AlignedFloats(0);
  const int64_t groups = g.narrow_groups() ? 1 : g.groups;
  const int64_t out = g.out_channels / groups, padded = round_up(out, kernels().vector_width);
  AlignedFloats packed(groups * padded);
  std::memset(packed.data(), 0, sizeof(float) * static_cast<size_t>(packed.size()));
  for (int64_t group = 0; group < groups; ++group)
    std::copy(values + group * out, values + (group + 1) * out, packed.data() + group * padded);
  return packed;
}

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
  const int64_t tile = g_.algorithm.tile;
  const int64_t rows = (g_.out_height + tile - 1) / tile, columns = (g_.out_width + tile - 1) / tile;
  return split_tiles_by_channels(g_.images * rows * columns, team);
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

// Few tiles, or weights that would be read by every thread: each thread takes its own output channels, and
// transforms the input for itself.
bool ConvJob::split_tiles_by_channels(int64_t tiles, int team) const {
  const int64_t panels = panels_.count * g_.groups;
  if (team == 1 || panels < team) return false;
  if (tiles < 8 * team) return true;
  const int64_t weights = g_.algorithm.points * g_.algorithm.points * g_.in_channels * g_.group_out() * 4;
  return weights > kSharedWeightBytes && panels % team == 0;
}

// Tiles worked on at once.
int64_t ConvJob::winograd_block(bool raw) const {
  if (raw) return raw_block(g_);
  const int64_t rows = kernels().winograd_rows(panels_.vectors), width = kernels().vector_width;
  if (g_.packed_bytes() / g_.groups > kNearWeightBytes) return kRowBlocks * rows;
  const int64_t channels = round_up(g_.group_in(), width) + round_up(g_.group_out(), width);
  const int64_t tile_bytes = g_.algorithm.points * g_.algorithm.points * channels * 4;
  return std::clamp<int64_t>(kTileBytes / tile_bytes, rows, 4 * rows);
}

// Which of a layer's units and tiles a thread takes.
struct ConvJob::TileShare {
  int64_t tile_begin, tile_end, unit_begin, unit_end;
};

ConvJob::TileShare ConvJob::tile_share(bool raw, int thread, int team) const {
  const int64_t tiles = tiles_of(g_), units = panels_.count * g_.groups;
  // Every part of the tiles transforms raw weights anew: as few as there are threads beyond the panels.
  const auto parts = raw ? static_cast<int>(std::max<int64_t>(1, team / units)) : 1;
  if (!raw && !split_tiles_by_channels(tiles, team)) {
    const auto [begin, end] = share(tiles, 1, thread, team);
    return {begin, end, 0, units};
  }
  const auto [unit_begin, unit_end] = share(units, 1, thread / parts, std::max(1, team / parts));
  const auto [tile_begin, tile_end] = share(tiles, 1, thread % parts, parts);
  return {tile_begin, tile_end, unit_begin, unit_end};
}

void ConvJob::run_winograd(const PackedConv& packed, const float* input, float* output, const float* residual,
                           int thread, int team) const {
  const int64_t in = g_.group_in(), out = g_.group_out(), width = kernels().vector_width;
  const int64_t points = g_.algorithm.points * g_.algorithm.points;
  WinogradCall call;
  call.height = g_.out_height;
  call.width = g_.out_width;
  call.points = g_.algorithm.points;
  call.tile = g_.algorithm.tile;
  call.tile_rows = (g_.out_height + call.tile - 1) / call.tile;
  call.tile_columns = (g_.out_width + call.tile - 1) / call.tile;
  call.in_channels = in;
  call.channels = out;
  call.panel_vectors = panels_.vectors;
  call.activation = g_.activation;
  call.prologue = prologue_;
  call.far_input = g_.far_input;
  call.raw = packed.raw ? &*packed.raw : nullptr;
  const auto [tile_begin, tile_end, unit_begin, unit_end] = tile_share(call.raw, thread, team);
  if (tile_begin >= tile_end || unit_begin >= unit_end) return;
  const int64_t share_tiles = tile_end - tile_begin, block = winograd_block(call.raw);
  const int64_t blocks = (share_tiles + block - 1) / block;
  call.block_tiles = (share_tiles + blocks - 1) / blocks;  // equal ones
  const int64_t most_panels = std::min(panels_.count, unit_end - unit_begin);
  call.scratch = thread_scratch(ScratchSlot::kWinograd, kernels().winograd_scratch(call, most_panels));
  for (int64_t group = 0; group < g_.groups; ++group) {
    const int64_t first = std::max(unit_begin, group * panels_.count) - group * panels_.count;
    const int64_t last = std::min(unit_end, (group + 1) * panels_.count) - group * panels_.count;
    if (first >= last) continue;
    const int64_t padded = round_up(out, width);
    call.input = {const_cast<float*>(input) + group * in, input_.image, input_.row, input_.pixel};
    call.output = {output + group * out, output_.image, output_.row, output_.pixel};
    call.residual = {residual ? const_cast<float*>(residual) + group * out : nullptr, residual_.image,
                     residual_.row, residual_.pixel};
    call.weight = packed.weight + group * (call.raw ? out * call.raw->out : padded * in * points);
    call.scale = packed.scale.size() ? packed.scale.data() + group * padded : nullptr;
    call.shift = packed.shift.size() ? packed.shift.data() + group * padded : nullptr;
    kernels().winograd(call, tile_begin, tile_end, first, last);
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
