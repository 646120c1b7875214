// The part of ConvJob that runs Winograd's algorithm.
#include <algorithm>
#include <utility>

#include "cpu/conv_job.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// A block of tiles and its products should stay in the second-level cache beside the weights, where those do.
constexpr int64_t kTileBytes = 450 * 1024;
// Where they do not, they are read once per block: about so many tiles pay for that, in whole register
// blocks. With 18 of them the weights of 512 channels, more than some third-level caches hold, want 11 GB/s a
// thread.
constexpr int64_t kFarTiles = 48;
// Transformed weights beyond this are read once per thread rather than by every thread.
constexpr int64_t kSharedWeightBytes = 4 << 20;

// The pixels of one tile, `step` apart.
View apart(const View& v, float* data, int64_t step) { return {data, v.image, step * v.row, step * v.pixel}; }

// Rows for columns: kernels of one column are computed as those of one row.
View with_turned_image(const View& v) { return {v.data, v.image, v.pixel, v.row}; }
Prologue with_turned_image(Prologue p) {
  std::swap(p.top, p.left);
  std::swap(p.height, p.width);
  return p;
}

}  // namespace

// Few tiles, or weights that would be read by every thread: each thread takes its own output channels, and
// transforms the input for itself.
bool ConvJob::split_tiles_by_channels(int64_t tiles, int team) const {
  const int64_t panels = panels_.count * g_.groups;
  if (team == 1 || panels < team) return false;
  if (tiles < 8 * team) return true;
  const int64_t weights = g_.products() * g_.in_channels * g_.group_out() * 4;
  return weights > kSharedWeightBytes && panels % team == 0;
}

// Tiles worked on at once.
int64_t ConvJob::winograd_block(bool raw) const {
  if (raw) return raw_block(g_);
  const int64_t rows = kernels().winograd_rows(panels_.vectors), width = kernels().vector_width;
  if (g_.packed_bytes() / g_.groups > kNearWeightBytes) return kFarTiles / rows * rows;
  const int64_t channels = round_up(g_.group_in(), width) + round_up(g_.group_out(), width);
  const int64_t tile_bytes = g_.products() * channels * 4;
  return std::clamp<int64_t>(kTileBytes / tile_bytes, rows, 4 * rows);
}

// Which of a layer's units and tiles a thread takes.
struct ConvJob::TileShare {
  int64_t tile_begin, tile_end, unit_begin, unit_end;
};

ConvJob::TileShare ConvJob::tile_share(bool raw, int thread, int team) const {
  const int64_t tiles = winograd_tiles(g_), units = panels_.count * g_.groups;
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
  const bool turned = g_.tile_width() < g_.tile_height();  // kernels of one column
  WinogradCall call;
  call.height = turned ? g_.out_width : g_.out_height;
  call.width = turned ? g_.out_height : g_.out_width;
  call.points = g_.algorithm.points;
  call.tile = g_.algorithm.tile;
  call.tile_height = turned ? g_.tile_width() : g_.tile_height();
  call.step = g_.dilation_h;
  call.tile_rows = tile_rows(call.height, call.tile_height, call.step);
  call.tile_columns = tile_rows(call.width, call.tile, call.step);
  call.in_channels = in;
  call.channels = out;
  call.panel_vectors = panels_.vectors;
  call.activation = g_.activation;
  call.prologue = turned ? with_turned_image(prologue_) : prologue_;
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
    const auto tiles_of = [&](const View& v, float* data) {
      return apart(turned ? with_turned_image(v) : v, data, call.step);
    };
    call.input = tiles_of(input_, const_cast<float*>(input) + group * in);
    call.output = tiles_of(output_, output + group * out);
    call.residual = tiles_of(residual_, residual ? const_cast<float*>(residual) + group * out : nullptr);
    if (prologue_.scale) {
      call.prologue.scale = prologue_.scale + group * in;
      call.prologue.shift = prologue_.shift + group * in;
    }
    call.weight = packed.weight + group * (call.raw ? out * call.raw->out : padded * in * g_.products());
    call.scale = packed.scale.size() ? packed.scale.data() + group * padded : nullptr;
    call.shift = packed.shift.size() ? packed.shift.data() + group * padded : nullptr;
    kernels().winograd(call, tile_begin, tile_end, first, last);
  }
}

}  // namespace cnnfast::cpu
