// What it is worth to run some steps depth first.
#pragma once
#include "plan/step_group.h"

namespace cnnfast::plan {

constexpr int64_t kValueBytes = 2;
inline int64_t pixels_of(const Place& p) { return p.size.height * p.size.width; }
inline int64_t image_bytes(const Place& p) { return kValueBytes * p.image(); }

struct GroupWorth {
  // Constants that stay in cache from one part to the next; larger ones come again for every part.
  static constexpr int64_t kNearConstants = 256 * 1024;

  // Steps whose result is one pixel, as squeeze-excite has them, come with those around them.
  static bool is_of_pixel(const RowStep& step) {
    return pixels_of(step.writes()) == 1 && step.constant_bytes() <= kNearConstants;
  }
  // Half of what steps read that others before them read or wrote, and of what they write for others of the
  // group alone; without the constants that are read for a pixel and come again for every part.
  static int64_t saved_bytes(const StepGroup& group);
  // In operations: the time that values save by staying in cache, less what it takes to begin with parts.
  static double of_images(const StepGroup& group);
  // The same, less what strips compute twice.
  static double of_strips(const StepGroup& group);

  // What the steps compute for `rows` rows in the middle behind as many.
  static std::vector<StepGroup::Rows> computed_rows(const StepGroup& group, int64_t rows);
  // What they compute for a strip of so many rows, relative to its share of their rows.
  static double repeated(const StepGroup& group, int64_t rows);

 private:
  static int64_t parts_of(const StepGroup& group);
  static double gained_bytes(const StepGroup& group, int64_t parts);
  static double begun_work(const StepGroup& group);
};

}  // namespace cnnfast::plan
