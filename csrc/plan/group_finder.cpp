// Which steps run depth first, and how much at a time.
#include <algorithm>
#include <map>
#include <set>

#include "cpu/bf16_table.h"
#include "cpu/cache_size.h"
#include "cpu/parallel.h"
#include "plan/arena.h"
#include "plan/step_group.h"

namespace cnnfast::plan {
namespace {

// Of a thread's second-level cache. What a part of a group reads and writes; weights want the rest. What a
// strip hands on: the rows that it reads, which lie elsewhere, want some, too. And what is handed on of so
// little that it stays in cache anyway.
struct CacheShares {
  int64_t part, strip, far;
  explicit CacheShares(int64_t cache) : part(cache / 16 * 11), strip(cache / 2), far(cache / 2) {}
};

// Constants that stay in cache from one part to the next; larger ones come again for every part, which must
// have enough pixels to hide that: pairs some, tiles more.
constexpr int64_t kNearConstants = 256 * 1024;
constexpr int64_t kHidingPixels = 96, kTileHidingPixels = 384;
// Fewer leave a tile of pixels empty.
constexpr int64_t kLeastPixels = 16;
// Steps that make a group too large, whose results are small again a few steps on.
constexpr int kMostFailures = 4;
// Of the work of strips, rows that two of them need counted twice.
constexpr double kMostRepeated = 1.25;
// Operations in the time that a byte takes to leave the cache and come again: pairs at 300 GFLOP/s, tiles at
// some thousands, far memory at 60 GB/s.
constexpr double kFlopsPerByte = 10, kTileFlopsPerByte = 100;
// Operations of tiles in the time that a vector takes to finish a value: what first layers consist of.
constexpr double kTileFlopsPerValue = 256;
// What a step takes to begin with a part, in bytes of that time: calls, blocks that few rows do not fill,
// weights from the second-level cache.
constexpr double kBytesPerPart = 1e4;
// Enough parts for some threads, where there are few images.
constexpr int64_t kParts = 8;

int64_t pixels_of(const Place& p) { return p.size.height * p.size.width; }
constexpr int64_t kValueBytes = 2;
int64_t image_bytes(const Place& p) { return kValueBytes * p.image(); }
// Of its channels alone.
int64_t moved_bytes(const Place& p) { return image_bytes(p) / p.buffer_channels * p.size.channels; }
int64_t floats_for(int64_t values16) { return (values16 + 1) / 2; }

}  // namespace

class GroupFinder {
 public:
  GroupFinder(const Steps& steps, const std::vector<bool>& external)
      : external_(external), shares_(cpu::second_level_cache(cpu::team_size())) {
    for (const auto& step : steps) steps_.push_back(dynamic_cast<const RowStep*>(step.get()));
    for (size_t i = 0; i < steps.size(); ++i) {
      for (const Place& p : steps[i]->reads()) use(p.buffer, i);
      for (const Place& p : steps[i]->all_writes()) use(p.buffer, i);
    }
  }

  // The groups that are worth most together: from the last step back, what those from a step on are worth,
  // and the first of them.
  std::vector<StepGroup> run() const {
    std::vector<double> worth(steps_.size() + 1, 0.0);
    std::vector<StepGroup> first(steps_.size());
    for (size_t i = steps_.size(); i-- > 0;) {
      worth[i] = worth[i + 1];
      const auto consider = [&](StepGroup group, double alone) {
        const double all = alone + worth[group.end()];
        if (all <= worth[i]) return;
        worth[i] = all;
        first[i] = std::move(group);
      };
      for_groups_of_images(i, consider);
      for_groups_of_strips(i, consider);
    }
    std::vector<StepGroup> groups;
    for (size_t i = 0; i < steps_.size();) {
      const bool none = first[i].steps_.empty();
      const size_t next = none ? i + 1 : first[i].end();
      if (!none) groups.push_back(std::move(first[i]));
      i = next;
    }
    return groups;
  }

 private:
  struct Use {
    size_t first, last;
  };
  void use(int buffer, size_t step) {
    auto [it, fresh] = uses_.try_emplace(buffer, Use{step, step});
    if (!fresh) it->second.last = step;
  }
  bool is_inside(const Place& p, size_t begin, size_t end) const {
    const Use& u = uses_.at(p.buffer);
    return !external_[p.buffer] && u.first >= begin && u.last < end;
  }
  // Steps whose result is one pixel, as squeeze-excite has them, come with those around them.
  static bool is_of_pixel(const RowStep* step) {
    return pixels_of(step->writes()) == 1 && step->constant_bytes() <= kNearConstants;
  }
  bool may_join(const RowStep* step) const {
    if (!step || !step->joins_groups()) return false;
    return is_of_pixel(step) || (!step->shares_constants() && pixels_of(step->writes()) >= kLeastPixels);
  }

  // consider(group, worth), of as many steps as there can be.
  template <class Consider>
  void for_groups_of_images(size_t begin, Consider&& consider) const {
    int failures = 0;
    for (size_t end = begin + 1; end <= steps_.size() && may_join(steps_[end - 1]); ++end) {
      StepGroup group = of_images(begin, end);
      if (group.images_at_once_ == 0 && ++failures > kMostFailures) break;
      if (group.images_at_once_ == 0) continue;
      failures = 0;
      if (saved_bytes(group) < shares_.far) continue;
      const double worth = flops_per_byte() * gained_bytes(group, parts_of(group));
      consider(std::move(group), worth);
    }
  }

  // images_at_once_ is 0 where steps [begin, end) are no group. Values are written over others where they do
  // not fit otherwise.
  StepGroup of_images(size_t begin, size_t end) const {
    StepGroup group = of_steps(begin, end);
    const int64_t outside = most_outside_bytes(group);
    std::vector<int> over;
    const auto bytes_of = [&](int64_t images) {
      return place_inside(group, [=](const Place& p, size_t) { return images * p.image(); }, over);
    };
    if (bytes_of(1) + outside > shares_.part) over = written_over(group);
    const int64_t bytes = bytes_of(1) + outside;
    if (bytes > shares_.part) return group;
    const int64_t images = std::min(group.images_, shares_.part / std::max<int64_t>(bytes, 1));
    if (!hides_constants(group, images)) return group;
    group.images_at_once_ = images;
    bytes_of(images);
    return group;
  }

  // Per buffer inside the one whose rows it may take as they are read for the last time, -1: none.
  std::vector<int> written_over(const StepGroup& group) const {
    std::vector<int> over(group.inside_.size(), -1);
    for (size_t to = 0; to < over.size(); ++to)
      for (size_t from = 0; from < over.size(); ++from) {
        const bool taken = std::count(over.begin(), over.end(), static_cast<int>(from)) > 0;
        if (!taken && over[from] < 0 && follows(group.inside_[from].place, group.inside_[to].place))
          over[to] = static_cast<int>(from);
      }
    return over;
  }

  // Whether the step that first writes `to` is the last that reads `from`, in turn and without running into
  // rows that it still wants.
  bool follows(const Place& from, const Place& to) const {
    const Use &of_from = uses_.at(from.buffer), &of_to = uses_.at(to.buffer);
    if (from.buffer == to.buffer || of_from.last != of_to.first) return false;
    const RowStep& step = *steps_[of_to.first];
    const auto& reads = step.reads();
    const bool reads_once = std::count_if(reads.begin(), reads.end(),
                                          [&](const Place& p) { return p.buffer == from.buffer; }) == 1;
    if (step.rows_in_turn() == 0 || !reads_once || reads[0].buffer != from.buffer) return false;
    const cpu::Border& b = to.border;
    if (step.writes().buffer != to.buffer || b.top + b.bottom + b.left + b.right > 0) return false;
    return to.image() <= from.image() && to.row() <= step.window_of(0)->stride * from.row();
  }

  static int64_t hiding_pixels() { return cpu::multiplies_by_tiles() ? kTileHidingPixels : kHidingPixels; }
  bool hides_constants(const StepGroup& group, int64_t images) const {
    return std::all_of(group.steps_.begin(), group.steps_.end(), [&](const RowStep* step) {
      return step->constant_bytes() <= kNearConstants ||
             images * pixels_of(step->writes()) >= hiding_pixels();
    });
  }

  // Bytes per image that one step reads from other steps' memory and writes there.
  int64_t most_outside_bytes(const StepGroup& group) const {
    int64_t most = 0;
    for (const RowStep* step : group.steps_) {
      int64_t bytes = 0;
      const auto count = [&](const Place& p) { bytes += group.has_inside(p.buffer) ? 0 : image_bytes(p); };
      for (const Place& p : step->reads()) count(p);
      for (const Place& p : step->all_writes()) count(p);
      most = std::max(most, bytes);
    }
    return most;
  }

  static int64_t parts_of(const StepGroup& group) {
    const int64_t at_once = std::max<int64_t>(1, group.images_at_once_);
    return (group.images_ + at_once - 1) / at_once;
  }

  // Half of what steps read that others before them read or wrote, and of what they write for others of the
  // group alone; without the constants that are read for a pixel and come again for every part.
  int64_t saved_bytes(const StepGroup& group) const {
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
      if (is_of_pixel(step)) bytes -= parts_of(group) * step->constant_bytes();
    }
    return bytes;
  }

  // Less what it takes to begin with so many parts.
  double gained_bytes(const StepGroup& group, int64_t parts) const {
    return static_cast<double>(saved_bytes(group)) -
           kBytesPerPart * static_cast<double>(parts * static_cast<int64_t>(group.steps_.size()));
  }

  template <class Consider>
  void for_groups_of_strips(size_t begin, Consider&& consider) const {
    int failures = 0;
    for (size_t end = begin + 1; end <= steps_.size() && may_join(steps_[end - 1]); ++end) {
      const RowStep& last = *steps_[end - 1];
      if (last.reads().empty() && end == begin + 1) continue;  // what copies images in, for what reads them
      if (last.reads().empty() || !last.window_of(0)) break;
      if (!hands_on_rows(begin, end)) {
        if (++failures > kMostFailures) break;
        continue;
      }
      if (writes_over_input(begin, end)) continue;
      StepGroup group = of_strips(begin, end);
      if (group.rows_at_once_ == 0 || saved_bytes(group) < shares_.far) continue;
      const double worth = worth_of_strips(group);
      consider(std::move(group), worth);
    }
  }

  static double flops_per_byte() { return cpu::multiplies_by_tiles() ? kTileFlopsPerByte : kFlopsPerByte; }

  // In operations: the time that values save by staying in cache, less what strips compute twice.
  double worth_of_strips(const StepGroup& group) const {
    double work = 0;
    for (const RowStep* step : group.steps_) work += work_of(*step);
    return flops_per_byte() * gained_bytes(group, group.images_ * group.strips()) -
           (repeated(group, group.rows_at_once_) - 1) * work - begun_work(group);
  }

  // In operations: what threads compute that begin within an image, because no strip before it is theirs.
  static double begun_work(const StepGroup& group) {
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

  // In operations.
  static double work_of(const RowStep& step) {
    const Place& to = step.writes();
    const double values = static_cast<double>(to.size.images * pixels_of(to) * to.size.channels);
    return step.flops() + (cpu::multiplies_by_tiles() ? kTileFlopsPerValue * values : 0);
  }

  // Whether steps [begin, end) read rows of each other's values and values from before them, and all but the
  // last write for these steps alone, one value each.
  bool hands_on_rows(size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i) {
      const RowStep& step = *steps_[i];
      for (size_t k = 0; k < step.reads().size(); ++k) {
        const int buffer = step.reads()[k].buffer;
        if (uses_.at(buffer).first < begin) continue;
        if (!is_inside(step.reads()[k], begin, end) || !step.window_of(k)) return false;
      }
      if (i + 1 == end) break;
      if (!step.also_writes().empty() || !is_inside(step.writes(), begin, end)) return false;
    }
    return true;
  }

  // A sum may be written over what it adds; the next strip must not read that.
  bool writes_over_input(size_t begin, size_t end) const {
    const Place& to = steps_[end - 1]->writes();
    const auto overlaps = [&](const Place& p) {
      return p.buffer == to.buffer && p.channel < to.channel + to.size.channels &&
             to.channel < p.channel + p.size.channels;
    };
    return std::any_of(steps_.begin() + begin, steps_.begin() + end - 1, [&](const RowStep* step) {
      return std::any_of(step->reads().begin(), step->reads().end(), overlaps);
    });
  }

  StepGroup of_strips(size_t begin, size_t end) const {
    StepGroup group = of_steps(begin, end);
    for (StepGroup::Inside& inside : group.inside_) inside.keeps = may_keep(group, inside);
    const int64_t wanted = std::max<int64_t>(1, kParts / std::max<int64_t>(1, group.images_));
    const auto bytes_of = [&](int64_t rows) {
      const auto all =
          group.rows_of_steps({group.height_ / 2, std::min(group.height_ / 2 + rows, group.height_)});
      return read_again_bytes(group, all) + place_inside(group, [&](const Place& p, size_t writer) {
               return (all[writer].end - all[writer].begin + p.border.top + p.border.bottom) * p.row();
             });
    };
    int64_t rows = std::max<int64_t>(1, (group.height_ + wanted - 1) / wanted);
    rows = std::min(rows, std::max<int64_t>(1, group.height_ / 2));
    while (rows > 1 && bytes_of(rows) > shares_.strip) --rows;
    group.rows_at_once_ = 0;
    if (bytes_of(rows) > shares_.strip) return group;
    const auto all = computed_rows(group, rows);
    for (size_t i = 0; i < group.steps_.size(); ++i) {
      const int64_t pixels = (all[i].end - all[i].begin) * group.steps_[i]->writes().size.width;
      if (group.steps_[i]->constant_bytes() > kNearConstants && pixels < hiding_pixels()) return group;
    }
    if (repeated(group, rows) <= kMostRepeated) group.rows_at_once_ = rows;
    return group;
  }

  // Whether a buffer's rows may stay for the next strip: those are wanted there again, and no step writes
  // over what it reads. Steps that write into it side by side are asked for the same rows.
  bool may_keep(const StepGroup& group, const StepGroup::Inside& inside) const {
    const int64_t middle = group.height_ / 2;
    const auto first = group.rows_of_steps({middle, middle + 1}),
               next = group.rows_of_steps({middle + 1, middle + 2});
    const int buffer = inside.place.buffer;
    for (size_t i = 0; i < group.steps_.size(); ++i) {
      const RowStep& step = *group.steps_[i];
      if (step.writes().buffer != buffer) continue;
      const auto& reads = step.reads();
      if (std::any_of(reads.begin(), reads.end(), [&](const Place& p) { return p.buffer == buffer; }))
        return false;
      if (first[i].begin != first[inside.writer].begin || first[i].end != first[inside.writer].end)
        return false;
    }
    return next[inside.writer].begin < first[inside.writer].end;
  }

  // What the steps compute for `rows` rows in the middle behind as many.
  static std::vector<StepGroup::Rows> computed_rows(const StepGroup& group, int64_t rows) {
    const int64_t middle = group.height_ / 2, end = std::min(middle + rows, group.height_);
    return group.rows_to_compute(group.rows_of_steps({middle, end}),
                                 group.rows_of_steps({std::max<int64_t>(0, middle - rows), middle}));
  }

  // Of rows that lie elsewhere and that a later step adds: they stay in cache until then.
  static int64_t read_again_bytes(const StepGroup& group, const std::vector<StepGroup::Rows>& all) {
    int64_t bytes = 0;
    for (size_t i = 1; i < group.steps_.size(); ++i) {
      const std::vector<Place>& reads = group.steps_[i]->reads();
      for (size_t operand = 1; operand < reads.size(); ++operand)
        if (!group.has_inside(reads[operand].buffer) && reads_before(group, i, reads[operand].buffer))
          bytes += (all[i].end - all[i].begin) * reads[operand].row() * kValueBytes;
    }
    return bytes;
  }

  static bool reads_before(const StepGroup& group, size_t step, int buffer) {
    return std::any_of(
        group.steps_.begin(), group.steps_.begin() + static_cast<int64_t>(step), [&](const RowStep* other) {
          const auto& reads = other->reads();
          return std::any_of(reads.begin(), reads.end(), [&](const Place& p) { return p.buffer == buffer; });
        });
  }

  // What the steps compute for a strip of so many rows, relative to its share of their rows.
  static double repeated(const StepGroup& group, int64_t rows) {
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

  StepGroup of_steps(size_t begin, size_t end) const {
    StepGroup group;
    group.begin_ = begin;
    group.steps_.assign(steps_.begin() + begin, steps_.begin() + end);
    const cpu::ImageSize& size = steps_[end - 1]->writes().size;
    group.images_ = size.images;
    group.height_ = size.height;
    for (size_t i = begin; i < end; ++i)
      for (const Place& p : steps_[i]->all_writes())
        if (is_inside(p, begin, end) && !group.has_inside(p.buffer))
          group.inside_.push_back({p, i - begin, 0});
    return group;
  }

  // Memory for `values(place, writer)` values of every buffer inside; returns bytes. over: written_over.
  template <class Values>
  int64_t place_inside(StepGroup& group, Values&& values, const std::vector<int>& over = {}) const {
    std::vector<Lifetime> lifetimes;
    for (const auto& inside : group.inside_) {
      const Use& u = uses_.at(inside.place.buffer);
      const Use used = inside.keeps ? Use{group.begin(), group.end()} : u;
      lifetimes.push_back({floats_for(values(inside.place, inside.writer)), static_cast<int64_t>(used.first),
                           static_cast<int64_t>(used.last)});
    }
    // The two as one, the rows that are written at a time in front of those that are read.
    for (size_t i = 0; i < over.size(); ++i) {
      if (over[i] < 0) continue;
      Lifetime &to = lifetimes[i], &from = lifetimes[over[i]];
      to = {std::max(to.floats, lead(group.inside_[i]) + from.floats), from.first, to.last};
      from.floats = 0;
    }
    const auto offsets = place_buffers(lifetimes, group.scratch_floats_);
    for (size_t i = 0; i < offsets.size(); ++i) group.inside_[i].offset = offsets[i];
    for (size_t i = 0; i < over.size(); ++i)
      if (over[i] >= 0) group.inside_[over[i]].offset = offsets[i] + lead(group.inside_[i]);
    return group.scratch_floats_ * static_cast<int64_t>(sizeof(float));
  }

  // Floats of the rows that its step writes at a time, in whole cache lines.
  int64_t lead(const StepGroup::Inside& inside) const {
    const RowStep& step = *steps_[uses_.at(inside.place.buffer).first];
    return (floats_for(step.rows_in_turn() * inside.place.row()) + 15) / 16 * 16;
  }

  const std::vector<bool>& external_;
  const CacheShares shares_;
  std::vector<const RowStep*> steps_;  // null: computes no rows
  std::map<int, Use> uses_;
};

std::vector<StepGroup> find_groups(const Steps& steps, const std::vector<bool>& external) {
  return GroupFinder(steps, external).run();
}

}  // namespace cnnfast::plan
