// Which steps run depth first, and how much at a time.
#include <algorithm>
#include <map>

#include "cpu/bf16_table.h"
#include "cpu/cache_size.h"
#include "cpu/parallel.h"
#include "plan/arena.h"
#include "plan/group_worth.h"

namespace cnnfast::plan {
namespace {

// Of a thread's second-level cache. What a part of a group reads and writes; weights want the rest. What a
// strip hands on: the rows that it reads, which lie elsewhere, want some, too. And what is handed on of so
// little that it stays in cache anyway.
struct CacheShares {
  int64_t part, strip, far;
  explicit CacheShares(int64_t cache) : part(cache / 16 * 11), strip(cache / 2), far(cache / 2) {}
};

// Pixels that a part must have where constants come again for it: pairs some, tiles more.
constexpr int64_t kHidingPixels = 96, kTileHidingPixels = 384;
// Fewer leave a tile of pixels empty.
constexpr int64_t kLeastPixels = 16;
// Steps that make a group too large, whose results are small again a few steps on.
constexpr int kMostFailures = 4;
// Of the work of strips, rows that two of them need counted twice.
constexpr double kMostRepeated = 1.25;
// Enough parts for some threads, where there are few images.
constexpr int64_t kParts = 8;

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
  bool may_join(const RowStep* step) const {
    if (!step || !step->joins_groups()) return false;
    return GroupWorth::is_of_pixel(*step) ||
           (!step->shares_constants() && pixels_of(step->writes()) >= kLeastPixels);
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
      if (GroupWorth::saved_bytes(group) < shares_.far) continue;
      const double worth = GroupWorth::of_images(group);
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
      return step->constant_bytes() <= GroupWorth::kNearConstants ||
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
      if (group.rows_at_once_ == 0 || GroupWorth::saved_bytes(group) < shares_.far) continue;
      const double worth = GroupWorth::of_strips(group);
      consider(std::move(group), worth);
    }
  }

  // Whether steps [begin, end) read rows of each other's values and values from before them, and all but the
  // last write for these steps alone, one value each. Rows that come together are not the last's.
  bool hands_on_rows(size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i) {
      const RowStep& step = *steps_[i];
      if (step.rows_together() > 1 && i + 1 == end) return false;
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
      const auto all = most_rows(group, rows);
      return read_again_bytes(group, all) + place_inside(group, [&](const Place& p, size_t writer) {
               return (all[writer].end - all[writer].begin + p.border.top + p.border.bottom) * p.row();
             });
    };
    int64_t rows = std::max<int64_t>(1, (group.height_ + wanted - 1) / wanted);
    rows = std::min(rows, std::max<int64_t>(1, group.height_ / 2));
    while (rows > 1 && bytes_of(rows) > shares_.strip) --rows;
    group.rows_at_once_ = 0;
    if (bytes_of(rows) > shares_.strip) return group;
    const auto all = GroupWorth::computed_rows(group, rows);
    for (size_t i = 0; i < group.steps_.size(); ++i) {
      const int64_t pixels = (all[i].end - all[i].begin) * group.steps_[i]->writes().size.width;
      if (group.steps_[i]->constant_bytes() > GroupWorth::kNearConstants && pixels < hiding_pixels())
        return group;
    }
    if (GroupWorth::repeated(group, rows) <= kMostRepeated) group.rows_at_once_ = rows;
    return group;
  }

  // Of a strip of so many rows, every step's most. Strips in the middle want equally many, unless some rows
  // come together.
  static std::vector<StepGroup::Rows> most_rows(const StepGroup& group, int64_t rows) {
    const auto of_strip = [&](int64_t begin) {
      return group.rows_of_steps({begin, std::min(begin + rows, group.height_)});
    };
    auto most = of_strip(group.height_ / 2);
    const bool equal = std::all_of(group.steps_.begin(), group.steps_.end(),
                                   [](const RowStep* step) { return step->rows_together() == 1; });
    for (int64_t begin = 0; begin < group.height_ && !equal; begin += rows) {
      const auto all = of_strip(begin);
      for (size_t i = 0; i < all.size(); ++i)
        if (all[i].end - all[i].begin > most[i].end - most[i].begin) most[i] = all[i];
    }
    return most;
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
