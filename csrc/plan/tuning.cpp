#include "plan/tuning.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <set>

#include "cpu/conv_timing.h"
#include "cpu/parallel.h"
#include "plan/shapes.h"
#include "plan/steps.h"

namespace cnnfast::plan {
namespace {

constexpr size_t kColumns = static_cast<size_t>(TimeColumn::kCount);
constexpr size_t kConvColumns = static_cast<size_t>(TimeColumn::kPoints);
// Threads and geometry; with points and tile behind them.
using Conv = std::array<int64_t, kConvColumns>;
using Measured = std::array<int64_t, kColumns - 1>;

std::mutex table_mutex;
// Never destroyed: networks may be planned while static objects are.
auto& table = *new std::map<Measured, int64_t>;  // nanoseconds
// One at a time: two would share the cores and measure each other.
std::mutex timing_mutex;

// Stride and dilation are 1 wherever there is a choice.
Conv conv_of(const cpu::ConvGeometry& g) {
  return {cpu::team_size(), g.images,   g.in_channels, g.out_channels, g.groups,
          g.kernel_h,       g.kernel_w, g.out_height,  g.out_width};
}

Measured with_algorithm(const Conv& conv, const cpu::ConvAlgorithm& a) {
  Measured key{};
  std::copy(conv.begin(), conv.end(), key.begin());
  key[kConvColumns] = a.points;
  key[kConvColumns + 1] = a.tile;
  return key;
}

// Nanoseconds in the order of `algorithms`, -1 where nothing was measured.
std::vector<int64_t> look_up(const Conv& conv, const std::vector<cpu::ConvAlgorithm>& algorithms) {
  std::lock_guard lock(table_mutex);
  std::vector<int64_t> times;
  for (const auto& a : algorithms) {
    const auto it = table.find(with_algorithm(conv, a));
    times.push_back(it == table.end() ? -1 : it->second);
  }
  return times;
}

void measure(const cpu::ConvGeometry& g, const std::vector<cpu::ConvAlgorithm>& algorithms) {
  const std::vector<int64_t> times = cpu::time_convolution(g, algorithms);
  std::lock_guard lock(table_mutex);
  for (size_t i = 0; i < algorithms.size(); ++i) table[with_algorithm(conv_of(g), algorithms[i])] = times[i];
}

int64_t largest_tile_of(const Node& node, bool half) {
  const int64_t bound = node.attr[Conv2dAttr::kLargestTile];
  return half ? cpu::largest_tile16(bound) : bound;
}

}  // namespace

cpu::ConvAlgorithm algorithm_of(const Node& node, const cpu::ConvGeometry& g, bool half) {
  if (half && g.dilation_h > 1) return {};
  const int64_t largest_tile = largest_tile_of(node, half);
  const cpu::ConvAlgorithm by_cost = cpu::choose_algorithm(g, largest_tile);
  if (half && largest_tile >= cpu::kLargestTile) {
    const auto fixed = cpu::choose_fixed(g);
    if (fixed && cpu::conv_cycles(g, *fixed) < cpu::conv_cycles(g, by_cost)) return *fixed;
  }
  if (!node.attr[Conv2dAttr::kTuned]) return by_cost;
  const auto possible = cpu::possible_algorithms(g, largest_tile);
  const auto times = look_up(conv_of(g), possible);
  int64_t best = -1;
  for (size_t i = 0; i < times.size(); ++i)
    if (times[i] >= 0 && (best < 0 || times[i] < times[best])) best = static_cast<int64_t>(i);
  return best < 0 ? by_cost : possible[best];
}

Tuned tune(const Graph& graph, const std::vector<std::vector<int64_t>>& input_sizes) {
  const auto values = infer(graph, input_sizes);
  std::lock_guard lock(timing_mutex);
  std::set<Conv> fresh;
  Tuned tuned;
  for (size_t id = 0; id < graph.nodes.size(); ++id) {
    const Node& node = graph.nodes[id];
    if (node.op != Op::kConv2d || !node.attr[Conv2dAttr::kTuned] || values[id].images == 0) continue;
    const cpu::ConvGeometry g = conv_geometry_of(node, values[node.inputs[0]], values[id]);
    const auto possible = cpu::possible_algorithms(g, largest_tile_of(node, graph.half()));
    if (possible.size() < 2) continue;
    const auto times = look_up(conv_of(g), possible);
    if (std::find(times.begin(), times.end(), -1) != times.end()) {
      measure(g, possible);
      fresh.insert(conv_of(g));
    }
    ++(fresh.count(conv_of(g)) ? tuned.timed : tuned.known);
  }
  return tuned;
}

at::Tensor conv_times() {
  std::lock_guard lock(table_mutex);
  const at::Tensor times =
      at::empty({static_cast<int64_t>(table.size()), static_cast<int64_t>(kColumns)}, at::kLong);
  auto* word = times.data_ptr<int64_t>();
  for (const auto& [key, nanoseconds] : table) {
    word = std::copy(key.begin(), key.end(), word);
    *word++ = nanoseconds;
  }
  return times;
}

void add_conv_times(const at::Tensor& times) {
  TORCH_CHECK(times.scalar_type() == at::kLong && times.is_cpu() && times.dim() == 2 &&
                  times.size(1) == static_cast<int64_t>(kColumns),
              "cnnfast::add_conv_times: times must be an int64 CPU tensor of shape [n, ", kColumns, "], not ",
              times.scalar_type(), " of shape ", times.sizes(), " on ", times.device());
  const at::Tensor rows = times.contiguous();
  const int64_t* word = rows.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(word, word + rows.numel(), [](int64_t w) { return w >= 0; }),
              "cnnfast::add_conv_times: times has negative numbers");
  std::lock_guard lock(table_mutex);
  for (int64_t row = 0; row < rows.size(0); ++row, word += kColumns) {
    Measured key;
    std::copy(word, word + kColumns - 1, key.begin());
    table.emplace(key, word[kColumns - 1]);
  }
}

void clear_conv_times() {
  std::lock_guard lock(table_mutex);
  table.clear();
}

}  // namespace cnnfast::plan
