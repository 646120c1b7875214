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

bool overlap(const std::vector<Place>& some, const std::vector<Place>& others) {
  return std::any_of(others.begin(), others.end(), [&](const Place& p) { return overlap(some, p); });
}

bool depends(const Step& later, const Step& earlier) {
  const std::vector<Place> last = later.all_writes(), first = earlier.all_writes();
  return overlap(later.reads(), first) || overlap(earlier.reads(), last) || overlap(first, last);
}

}  // namespace

std::vector<int64_t> earliest_phases(const Steps& steps) {
  std::vector<int64_t> phase(steps.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (phase[i] <= phase[j] && depends(*steps[i], *steps[j])) phase[i] = phase[j] + 1;
  return phase;
}

std::vector<int64_t> phases_in_order(const Steps& steps) {
  std::vector<int64_t> phase(steps.size(), 0);
  size_t first = 0;  // of the phase
  for (size_t i = 1; i < steps.size(); ++i) {
    const bool waits = std::any_of(steps.begin() + first, steps.begin() + i,
                                   [&](const auto& earlier) { return depends(*steps[i], *earlier); });
    if (waits) first = i;
    phase[i] = phase[i - 1] + waits;
  }
  return phase;
}

}  // namespace cnnfast::plan
