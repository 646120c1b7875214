#include "cpu/conv_pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/fixed_pack.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Transformed tiles of one block where weights are transformed on their way into the products, and so many
// blocks at most do that anew.
constexpr int64_t kRawTileFloats = 1 << 19;
constexpr int64_t kRawBlocks = 8;
// Fewer weights are packed by one thread.
constexpr int64_t kSerialFloats = 1 << 16;
// Input channels that are moved at once: what is read, side by side in some layouts, stays in the first-level
// cache until all of it has been used.
constexpr int64_t kPackBlock = 16;

// Point, panel, input channel, channel in the panel; the input channels [begin, end) of every panel.
void pack_winograd(const ConvGeometry& g, const float* weight, const WeightStrides& strides, int64_t begin,
                   int64_t end, float* to, bool quick) {
  const int64_t in = g.group_in(), out = g.group_out(), width = kernels().vector_width;
  const int64_t lanes = Panels::of(g).lanes(), points = g.products();
  WinogradWeightsCall call{};
  call.matrix = kernel_transform(g.algorithm);
  call.points = g.algorithm.points;
  call.size = std::max(g.kernel_h, g.kernel_w);
  call.line = g.line();
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

int64_t raw_block(const ConvGeometry& g) {
  return std::max<int64_t>(16, kRawTileFloats / (g.products() * g.group_in()));
}

AlignedFloats pack_weight(const ConvGeometry& g, const float* weight, WeightStrides strides) {
  AlignedFloats packed(packed_floats(g));
  pack_weight_into(g, weight, strides, packed.data());
  return packed;
}

int64_t packed_floats(const ConvGeometry& g) {
  if (g.algorithm.fixed) return g.groups * fixed_group_floats(g);
  if (g.narrow_groups()) return round_up(g.out_channels, kernels().vector_width) * g.depth();
  return g.packed_bytes() / static_cast<int64_t>(sizeof(float));
}

void pack_weight_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed,
                      bool quick) {
  if (g.algorithm.fixed) return pack_fixed_into(g, weight, strides, packed);
  if (g.narrow_groups()) return pack_narrow(g, weight, strides, packed);
  const auto pack = g.algorithm.direct() ? pack_direct : pack_winograd;
  parallel_team(packed_floats(g) < kSerialFloats ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.group_in(), 1, thread, team);
    pack(g, weight, strides, begin, end, packed, quick);
  });
}

bool takes_raw_weights(const ConvGeometry& g) {
  if (g.algorithm.direct() || g.algorithm.fixed || g.line()) return false;
  if (g.packed_bytes() / g.groups <= kNearWeightBytes) return false;
  return winograd_tiles(g) <= kRawBlocks * raw_block(g);
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

}  // namespace cnnfast::cpu
