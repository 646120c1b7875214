#include "plan/arena.h"

#include <algorithm>
#include <numeric>

namespace cnnfast::plan {
namespace {

int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

bool meet(const Lifetime& a, const Lifetime& b) { return a.first <= b.last && b.first <= a.last; }

}  // namespace

std::vector<int64_t> place_buffers(const std::vector<Lifetime>& buffers, int64_t& total) {
  std::vector<size_t> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return buffers[a].floats > buffers[b].floats; });
  std::vector<int64_t> offset(buffers.size(), 0);
  std::vector<size_t> placed;
  total = 0;
  for (const size_t b : order) {
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (const size_t other : placed)
      if (meet(buffers[b], buffers[other]))
        taken.emplace_back(offset[other], offset[other] + aligned(buffers[other].floats));
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto& [begin, end] : taken) {
      if (begin - at >= aligned(buffers[b].floats)) break;
      at = std::max(at, end);
    }
    offset[b] = at;
    placed.push_back(b);
    total = std::max(total, at + aligned(buffers[b].floats));
  }
  return offset;
}

}  // namespace cnnfast::plan
