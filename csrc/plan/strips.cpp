#include "plan/strips.h"

#include <algorithm>

namespace cnnfast::plan {
namespace {

// Of the second-level cache; the convolution's input, weights and scratch memory want the rest.
constexpr int64_t kStripBytes = 192 * 1024;
// Few images: enough strips to occupy some threads.
constexpr int64_t kUnits = 8;

int64_t rows_computed(const cpu::ConvGeometry& g, int64_t rows) {
  return g.algorithm.direct() ? rows : cpu::tile_rows(rows, g.tile_height(), g.dilation_h) * g.tile_height();
}

// Pooled rows that need one row of whole tiles: with fewer, most of a tile would be computed for nothing.
int64_t rows_of_a_tile(const cpu::ConvGeometry& g, const Window& w) {
  return g.algorithm.direct() ? 1 : std::max<int64_t>(1, (g.tile_height() - w.extent) / w.stride + 1);
}

// Pooled rows per strip: as many as fit, or somewhat fewer where tiles then fill better.
int64_t rows_per_strip(const cpu::ConvGeometry& g, const Window& w, int64_t pool_height) {
  const auto value = static_cast<int64_t>(g.algorithm.fixed ? sizeof(uint16_t) : sizeof(float));
  const int64_t row_bytes = g.out_width * g.out_channels * value;
  const int64_t most = std::max<int64_t>(1, (kStripBytes / row_bytes - w.extent) / w.stride + 1);
  const int64_t wanted = std::max<int64_t>(1, kUnits / std::max<int64_t>(1, g.images));
  const int64_t fitting = std::min(most, std::max<int64_t>(1, (pool_height + wanted - 1) / wanted));
  const int64_t limit = std::min(pool_height, std::max(fitting, rows_of_a_tile(g, w)));
  int64_t best = limit;
  double best_cost = 1e30;
  for (int64_t rows = limit; rows >= std::max<int64_t>(1, limit / 2); --rows) {
    const auto computed = static_cast<double>(rows_computed(g, (rows - 1) * w.stride + w.extent));
    const double cost = computed / static_cast<double>(rows);
    if (cost < 0.999 * best_cost) {
      best = rows;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace

std::vector<Strip> cut_strips(const cpu::ConvGeometry& g, const Window& w, int64_t pool_height) {
  const int64_t step = rows_per_strip(g, w, pool_height);
  std::vector<Strip> strips;
  for (int64_t begin = 0; begin < pool_height; begin += step) {
    const int64_t end = std::min(begin + step, pool_height);
    strips.push_back({begin, end, std::max<int64_t>(0, begin * w.stride - w.pad_begin),
                      std::min(g.out_height, (end - 1) * w.stride - w.pad_begin + w.extent)});
  }
  return strips;
}

double rows_repeated(const cpu::ConvGeometry& g, const std::vector<Strip>& strips) {
  double rows = 0;
  for (const Strip& s : strips) rows += static_cast<double>(rows_computed(g, s.rows()));
  return rows / static_cast<double>(rows_computed(g, g.out_height));
}

int64_t strips_overreach(const cpu::ConvGeometry& g, const std::vector<Strip>& strips) {
  int64_t beyond = 0;
  for (const Strip& s : strips)
    beyond = std::max(beyond, s.row_begin + rows_computed(g, s.rows()) - g.out_height);
  return beyond;
}

}  // namespace cnnfast::plan
