#include "plan/phases.h"

#include <algorithm>

namespace cnnfast::plan {
namespace {

// Slices of one buffer: their borders are as disjoint as their channels.
bool overlap(const Place& a, const Place& b) {
  return a.buffer == b.buffer && a.channel < b.channel + b.size.channels &&
         b.channel < a.channel + a.size.channels;
}

bool overlap(const std::vector<Place>& many, const Place& one) {
  return std::any_of(many.begin(), many.end(), [&](const Place& p) { return overlap(p, one); });
}

bool depends(const Step& later, const Step& earlier) {
  return overlap(later.reads(), earlier.writes()) || overlap(earlier.reads(), later.writes()) ||
         overlap(earlier.writes(), later.writes());
}

}  // namespace

std::vector<int64_t> phases_of(const std::vector<std::unique_ptr<Step>>& steps) {
  std::vector<int64_t> phase(steps.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (phase[i] <= phase[j] && depends(*steps[i], *steps[j])) phase[i] = phase[j] + 1;
  return phase;
}

}  // namespace cnnfast::plan
