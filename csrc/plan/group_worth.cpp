#include "plan/group_worth.h"

#include <algorithm>
#include <set>

#include "cpu/bf16_table.h"
#include "cpu/parallel.h"

namespace cnnfast::plan {
namespace {

// Operations in the time that a byte takes to leave the cache and come again: pairs at 300 GFLOP/s, tiles at
// some thousands, far memory at 60 GB/s.
constexpr double kFlopsPerByte = 10, kTileFlopsPerByte = 100;
// Operations of tiles in the time that a vector takes to finish a value: what first layers consist of.
constexpr double kTileFlopsPerValue = 256;
// What a step takes to begin with a part, in bytes of that time: calls, blocks that few rows do not fill,
// weights from the second-level cache.
constexpr double kBytesPerPart = 1e4;

// Of its channels alone.
int64_t moved_bytes(const Place& p) { return image_bytes(p) / p.buffer_channels * p.size.channels; }

double flops_per_byte() { return cpu::multiplies_by_tiles() ? kTileFlopsPerByte : kFlopsPerByte; }

// In operations.
double work_of(const RowStep& step) {
  const Place& to = step.writes();
  const double values = static_cast<double>(to.size.images * pixels_of(to) * to.size.channels);
  return step.flops() + (cpu::multiplies_by_tiles() ? kTileFlopsPerValue * values : 0);
}

}  // namespace

int64_t GroupWorth::parts_of(const StepGroup& group) {
  const int64_t at_once = std::max<int64_t>(1, group.images_at_once_);
  return (group.images_ + at_once - 1) / at_once;
}

int64_t GroupWorth::saved_bytes(const StepGroup& group) {
  if (group.steps_.size() < 2) return 0;
  int64_t bytes = 0;
  std::set<int> near;
  for (const RowStep* step : group.steps_) {
    for (const Place& p : step->reads())
      if (!near.insert(p.buffer).second) bytes += group.images_ * moved_bytes(p) / 2;
    for (const Place& p : step->all_writes()) {
      near.insert(p.buffer);
      if (group.has_inside(p.buffer)) bytes += group.images_ * moved_bytes(p) / 2;
    }
    if (is_of_pixel(*step)) bytes -= parts_of(group) * step->constant_bytes();
  }
  return bytes;
}

// Less what it takes to begin with so many parts.
double GroupWorth::gained_bytes(const StepGroup& group, int64_t parts) {
  return static_cast<double>(saved_bytes(group)) -
         kBytesPerPart * static_cast<double>(parts * static_cast<int64_t>(group.steps_.size()));
}

double GroupWorth::of_images(const StepGroup& group) {
  return flops_per_byte() * gained_bytes(group, parts_of(group));
}

double GroupWorth::of_strips(const StepGroup& group) {
  double work = 0;
  for (const RowStep* step : group.steps_) work += work_of(*step);
  return flops_per_byte() * gained_bytes(group, group.images_ * group.strips()) -
         (repeated(group, group.rows_at_once_) - 1) * work - begun_work(group);
}

// In operations: what threads compute that begin within an image, because no strip before it is theirs.
double GroupWorth::begun_work(const StepGroup& group) {
  const int64_t parts = group.images_ * group.strips(), team = std::min<int64_t>(cpu::team_size(), parts);
  int64_t begun = 0;
  for (int64_t thread = 1; thread < team; ++thread) begun += parts * thread / team % group.strips() != 0;
  const int64_t middle = group.height_ / 2, end = std::min(middle + group.rows_at_once_, group.height_);
  const auto all = group.rows_of_steps({middle, end}), computed = computed_rows(group, group.rows_at_once_);
  double work = 0;
  for (size_t i = 0; i < group.steps_.size(); ++i) {
    const Place& to = group.steps_[i]->writes();
    const int64_t rows = (all[i].end - all[i].begin) - (computed[i].end - computed[i].begin);
    work += work_of(*group.steps_[i]) * static_cast<double>(rows) /
            static_cast<double>(to.size.images * to.size.height);
  }
  return static_cast<double>(begun) * work;
}

std::vector<StepGroup::Rows> GroupWorth::computed_rows(const StepGroup& group, int64_t rows) {
  const int64_t middle = group.height_ / 2, end = std::min(middle + rows, group.height_);
  return group.rows_to_compute(group.rows_of_steps({middle, end}),
                               group.rows_of_steps({std::max<int64_t>(0, middle - rows), middle}));
}

double GroupWorth::repeated(const StepGroup& group, int64_t rows) {
  const auto all = computed_rows(group, rows);
  const auto part =
      static_cast<double>(all.back().end - all.back().begin) / static_cast<double>(group.height_);
  double computed = 0, needed = 0;
  for (size_t i = 0; i < group.steps_.size(); ++i) {
    const auto height = static_cast<double>(group.steps_[i]->writes().size.height);
    const double work = work_of(*group.steps_[i]);
    computed += work * static_cast<double>(all[i].end - all[i].begin) / height;
    needed += work * part;
  }
  return needed > 0 ? std::max(1.0, computed / needed) : 1;
}

}  // namespace cnnfast::plan
