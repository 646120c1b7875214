#include "cpu/fixed_conv_job.h"

#include <algorithm>
#include <utility>

#include "cpu/fixed_pack.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Tiles that meet the weights of a panel at once, and the products of some panels, which stay in the
// second-level cache beside the tiles.
constexpr int64_t kBlockTiles = 24;
constexpr int64_t kProductBytes = 256 * 1024;
// Weights beyond this are read once per thread rather than by every thread.
constexpr int64_t kSharedWeightBytes = 4 << 20;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

FixedConvJob::FixedConvJob(const ConvGeometry& geometry, const FixedPadding& padding, View16 input,
                           View16 output, View16 residual, const Prologue& prologue)
    : g_(geometry),
      padding_(padding),
      input_(input),
      output_(output),
      residual_(residual),
      prologue_(prologue),
      panels_(Panels::of(g_)) {}

int64_t FixedConvJob::tiles_of(int64_t images, int64_t rows) const {
  return images * divide_up(rows, g_.tile_height()) * divide_up(g_.out_width, g_.tile_width());
}

// As ConvJob's for other weights.
bool FixedConvJob::split_by_channels(int team) const {
  const int64_t units = panels_.count * g_.groups;
  if (team == 1 || units < team) return false;
  if (tiles_of(g_.images, g_.out_height) < kBlockTiles / 2 * team) return true;
  return g_.groups * fixed_group_floats(g_) * 4 > kSharedWeightBytes && units % team == 0;
}

void FixedConvJob::run(const float* weight, const AlignedFloats& shift, const FixedMemory& memory, int thread,
                       int team) const {
  const int64_t tiles = tiles_of(g_.images, g_.out_height), units = panels_.count * g_.groups;
  const bool by_channels = split_by_channels(team);
  const auto [tile_begin, tile_end] =
      by_channels ? std::pair<int64_t, int64_t>{0, tiles} : share(tiles, 1, thread, team);
  const auto [unit_begin, unit_end] =
      by_channels ? share(units, 1, thread, team) : std::pair<int64_t, int64_t>{0, units};
  run_part(weight, shift, memory, {0, g_.images, 0, g_.out_height}, {tile_begin, tile_end},
           {unit_begin, unit_end});
}

void FixedConvJob::run_rows(const float* weight, const AlignedFloats& shift, const FixedMemory& memory,
                            const FixedRows& rows) const {
  run_part(weight, shift, memory, rows, {0, tiles_of(rows.images, rows.end - rows.begin)},
           {0, panels_.count * g_.groups});
}

void FixedConvJob::run_part(const float* weight, const AlignedFloats& shift, const FixedMemory& memory,
                            const FixedRows& rows, Share tiles, Share units) const {
  if (tiles.begin >= tiles.end || units.begin >= units.end) return;
  const int64_t in = g_.group_in(), out = g_.group_out(), padded = round_up(out, kernels().vector_width);
  const bool turned = g_.tile_width() < g_.tile_height();  // kernels of one column, as those of one row
  FixedWinogradCall call{};
  call.stride = g_.algorithm.stride;
  call.top = padding_.top - rows.begin * call.stride;
  call.left = padding_.left;
  call.in_height = padding_.in_height;
  call.in_width = padding_.in_width;
  call.height = rows.end - rows.begin;
  call.width = g_.out_width;
  call.points = g_.algorithm.points;
  call.tile = g_.algorithm.tile;
  call.tile_height = turned ? g_.tile_width() : g_.tile_height();
  if (turned) {
    std::swap(call.top, call.left);
    std::swap(call.in_height, call.in_width);
    std::swap(call.height, call.width);
  }
  call.tile_rows = divide_up(call.height, call.tile_height);
  call.tile_columns = divide_up(call.width, call.tile);
  call.in_channels = in;
  call.channels = out;
  call.panel_vectors = panels_.vectors;
  call.in_activation = prologue_.activation;
  call.activation = g_.activation;
  const int64_t blocks = divide_up(tiles.end - tiles.begin, kBlockTiles);
  call.block_tiles = divide_up(tiles.end - tiles.begin, blocks);  // equal ones
  const int64_t panel_bytes = g_.products() * call.block_tiles * panels_.lanes() * 4;
  call.block_panels = std::clamp<int64_t>(kProductBytes / panel_bytes, 1, panels_.count);
  call.scratch = thread_scratch(ScratchSlot::kWinograd, bf16_kernels().fixed->scratch(call));
  for (int64_t group = 0; group < g_.groups; ++group) {
    const int64_t first = std::max(units.begin, group * panels_.count) - group * panels_.count;
    const int64_t last = std::min(units.end, (group + 1) * panels_.count) - group * panels_.count;
    if (first >= last) continue;
    call.input = {const_cast<uint16_t*>(memory.input) + rows.first * input_.image + group * in, input_.image,
                  input_.row, input_.pixel};
    call.output = {memory.output + group * out, output_.image, output_.row, output_.pixel};
    call.residual = {memory.residual ? const_cast<uint16_t*>(memory.residual) + group * out : nullptr,
                     residual_.image, residual_.row, residual_.pixel};
    if (turned)
      for (View16* v : {&call.input, &call.output, &call.residual}) std::swap(v->row, v->pixel);
    const float* packed = weight + group * fixed_group_floats(g_);
    call.weight = reinterpret_cast<const int16_t*>(packed);
    call.weight_scale = packed + fixed_numbers(g_);
    call.shift = shift.size() ? shift.data() + group * padded : nullptr;
    call.in_scale = prologue_.scale ? prologue_.scale + group * in : nullptr;
    call.in_shift = prologue_.scale ? prologue_.shift + group * in : nullptr;
    bf16_kernels().fixed->run(call, tiles.begin, tiles.end, first, last);
  }
}

}  // namespace cnnfast::cpu
