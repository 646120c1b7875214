#include "cpu/short_pairs.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/conv16_job.h"
#include "cpu/parallel.h"
#include "cpu/short_panel.h"

namespace cnnfast::cpu {
namespace {

// Fewer weights come as fast as they are multiplied. More than caches hold are worth making whole twice.
constexpr int64_t kManyWeights = 1 << 19, kFarWeights = 1 << 23;

std::vector<ShortPanelWriter> panels_of(const ConvGeometry& g, const uint16_t* pairs) {
  const int64_t depth = round_up(g.depth(), kPairBlock), channels = round_up(g.group_out(), kHalfPanel);
  std::vector<std::optional<ShortPanelWriter>> made(
      static_cast<size_t>((channels + kPanelChannels - 1) / kPanelChannels));
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(static_cast<int64_t>(made.size()), 1, thread, team);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPanelChannels, stored = std::min(kPanelChannels, channels - first);
      made[p].emplace(pairs + first * depth, stored / kHalfPanel, depth / kPairBlock);
    }
  });
  std::vector<ShortPanelWriter> panels;
  for (auto& panel : made) panels.push_back(std::move(*panel));
  return panels;
}

}  // namespace

bool takes_short_pairs(const ConvGeometry& g) {
  const int64_t pixels = g.images * g.out_height * g.out_width, weights = g.out_channels * g.depth();
  const int64_t block = bf16_kernels().short_pixels;
  if (pixels == 0 || g.groups > 1 || weights < kManyWeights) return false;
  return pixels <= block || (weights >= kFarWeights && pixels <= 2 * block && !multiplies_by_tiles());
}

AlignedFloats shorten_pairs(const ConvGeometry& g, const AlignedFloats& pairs) {
  const std::vector<ShortPanelWriter> panels = panels_of(g, values16(pairs));
  const auto count = static_cast<int64_t>(panels.size());
  std::vector<int64_t> offset(panels.size());
  int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(int64_t)), kShortLine);
  for (int64_t p = 0; p < count; ++p) {
    offset[p] = bytes;
    bytes += panels[p].bytes();
  }
  AlignedFloats shortened(bytes / static_cast<int64_t>(sizeof(float)));
  auto* to = reinterpret_cast<uint8_t*>(shortened.data());
  std::copy(offset.begin(), offset.end(), reinterpret_cast<int64_t*>(to));
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(count, 1, thread, team);
    for (int64_t p = begin; p < end; ++p) panels[p].write(to + offset[p]);
  });
  return shortened;
}

}  // namespace cnnfast::cpu
