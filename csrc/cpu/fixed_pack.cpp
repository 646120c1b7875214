#include "cpu/fixed_pack.h"

#include <algorithm>
#include <vector>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/first_pack.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Fewer weights are packed by one thread.
constexpr int64_t kSerialFloats = 1 << 16;
// Input channels that are moved at once, as in cpu/conv_pack.
constexpr int64_t kPackBlock = 16;

int64_t padded_out(const ConvGeometry& g) { return round_up(g.group_out(), kernels().vector_width); }

using Panel = KernelsOfPanel;

// All points of a panel, transformed: point, input channel, output channel.
void transform_panel(const ConvGeometry& g, const Panel& p, float* to) {
  const int64_t in = g.group_in(), taps = g.kernel_h * g.kernel_w;
  WinogradWeightsCall call{};
  call.matrix = kernel_transform(g.algorithm);
  call.points = g.algorithm.kernel_points();
  call.size = std::max(g.kernel_h, g.kernel_w);
  call.line = g.line();
  call.lanes = p.stored;
  call.step = in * p.stored;
  std::vector<float> gathered(static_cast<size_t>(kPackBlock * taps * p.stored));
  for (int64_t i0 = 0; i0 < in; i0 += kPackBlock) {
    call.inputs = std::min(kPackBlock, in - i0);
    kernels().gather_kernels({p.weight + i0 * p.strides.in, p.strides.out, p.strides.in, p.strides.row,
                              p.strides.column, g.kernel_h, g.kernel_w, call.inputs, p.used, gathered.data(),
                              taps * p.stored, p.stored});
    call.kernels = gathered.data();
    call.output = to + i0 * p.stored;
    kernels().winograd_weights(call);
  }
}

void pack_panel(const ConvGeometry& g, const Panel& p, float* packed) {
  if (g.algorithm.first_layer())
    return pack_first_layer(g, p, reinterpret_cast<int16_t*>(packed), packed + fixed_numbers(g));
  const int64_t in = g.group_in(), padded = padded_out(g), depth = FixedChunks(in).channels();
  float* transformed = thread_scratch(ScratchSlot::kTransformed, g.kernel_products() * in * p.stored);
  transform_panel(g, p, transformed);
  auto* numbers = reinterpret_cast<int16_t*>(packed);
  float* scales = packed + fixed_numbers(g);
  for (int64_t point = 0; point < g.kernel_products(); ++point)
    bf16_kernels().fixed->weights({transformed + point * in * p.stored, in, p.stored,
                                   numbers + (point * padded + p.first) * depth,
                                   scales + point * padded + p.first});
}

}  // namespace

bool has_fixed_winograd() { return bf16_kernels().fixed != nullptr; }

int64_t fixed_numbers(const ConvGeometry& g) {
  if (g.algorithm.first_layer()) return first_layer_pairs(g) * padded_out(g);
  return g.kernel_products() * padded_out(g) * FixedChunks(g.group_in()).channels() / 2;
}
int64_t fixed_group_floats(const ConvGeometry& g) {
  return fixed_numbers(g) + (g.algorithm.first_layer() ? 1 : g.kernel_products()) * padded_out(g);
}

void pack_fixed_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed) {
  const Panels panels = Panels::of(g);
  const int64_t floats = g.groups * fixed_group_floats(g);
  parallel_team(floats < kSerialFloats ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.groups * panels.count, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / panels.count, first = unit % panels.count * panels.lanes();
      const int64_t used = std::min(panels.lanes(), g.group_out() - first);
      pack_panel(g,
                 {weight + (group * g.group_out() + first) * strides.out, strides, first, used,
                  round_up(used, kernels().vector_width)},
                 packed + group * fixed_group_floats(g));
    }
  });
}

}  // namespace cnnfast::cpu
