// The end of lowering: the order of the steps, where threads wait for each other, and where values lie.
#include <algorithm>
#include <numeric>

#include "plan/arena.h"
#include "plan/lowering.h"
#include "plan/phases.h"

namespace cnnfast::plan {
namespace {

// Values of a whole network that stay in the second-level cache: then the order of steps costs nothing. Else
// a step should run right behind the one whose output it reads.
constexpr int64_t kNearArenaFloats = 1 << 18;

}  // namespace

// Steps in the order of their phases, those of one phase as they were.
void Lowering::order_steps(const std::vector<int64_t>& phase) {
  auto& steps = program_.steps_;
  std::vector<size_t> order(steps.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return phase[a] < phase[b]; });
  std::vector<std::unique_ptr<Step>> sorted;
  program_.phase_.clear();
  for (Buffer& b : buffers_) b.first = b.last = -1;
  for (const size_t i : order) {
    for (const Place& p : steps[i]->reads()) touch(p.buffer, phase[i]);
    for (const Place& p : steps[i]->all_writes()) touch(p.buffer, phase[i]);
    program_.phase_.push_back(phase[i]);
    sorted.push_back(std::move(steps[i]));
  }
  steps = std::move(sorted);
}

void Lowering::touch(int buffer, int64_t phase) {
  Buffer& b = buffers_[buffer];
  if (b.first < 0) b.first = phase;
  b.last = phase;
}

void Lowering::place_values() {
  std::vector<Lifetime> lifetimes;
  for (const Buffer& b : buffers_) {
    const int64_t values = b.size.images * (b.size.height + b.border.top + b.border.bottom) *
                           (b.size.width + b.border.left + b.border.right) * b.channels;
    const int64_t held = graph_.half() ? (values + 1) / 2 : values;
    const bool used = !b.external && b.first >= 0;
    lifetimes.push_back({used ? held : 0, used ? b.first : 0, used ? b.last : -1});
  }
  program_.buffer_offset_ = place_buffers(lifetimes, program_.arena_floats_);
  for (size_t b = 0; b < buffers_.size(); ++b)
    if (buffers_[b].external) program_.buffer_offset_[b] = -1;
}

// Within a group threads are at different steps: what it shares with others must not lie where anything of
// the group does.
void Lowering::group_steps() {
  if (!graph_.half()) return;
  std::vector<bool> external;
  for (const Buffer& b : buffers_) external.push_back(b.external);
  program_.groups_ = find_groups(program_.steps_, external);
  for (const StepGroup& group : program_.groups_) {
    const int64_t first = program_.phase_[group.begin()], last = program_.phase_[group.end() - 1];
    const auto keep = [&](const Place& p) {
      if (group.has_inside(p.buffer)) return;
      buffers_[p.buffer].first = std::min(buffers_[p.buffer].first, first);
      buffers_[p.buffer].last = std::max(buffers_[p.buffer].last, last);
    };
    for (size_t i = group.begin(); i < group.end(); ++i) {
      for (const Place& p : program_.steps_[i]->reads()) keep(p);
      for (const Place& p : program_.steps_[i]->all_writes()) keep(p);
    }
  }
  place_values();
}

void Lowering::finish() {
  order_steps(phases_in_order(program_.steps_));
  place_values();
  if (program_.arena_floats_ > kNearArenaFloats) return group_steps();
  order_steps(earliest_phases(program_.steps_));
  place_values();
}

}  // namespace cnnfast::plan
