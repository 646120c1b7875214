#include "plan/step_group.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <sstream>

#include "cpu/parallel.h"

namespace cnnfast::plan {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint16_t* values16(float* memory) { return reinterpret_cast<uint16_t*>(memory); }

// A thread that has one part more than another is waited for.
constexpr double kMostUneven = 1.15;

}  // namespace

bool StepGroup::fits(int team) const {
  const int64_t parts = images_at_once_ > 0 ? images_ : images_ * strips();
  const int64_t most = (parts + team - 1) / team;
  return static_cast<double>(most * team) <= kMostUneven * static_cast<double>(parts);
}

bool StepGroup::has_inside(int buffer) const {
  return std::any_of(inside_.begin(), inside_.end(),
                     [&](const Inside& inside) { return inside.place.buffer == buffer; });
}

std::string StepGroup::text() const {
  std::ostringstream out;
  out << steps_.size() << " steps ";
  if (images_at_once_ > 0)
    out << images_at_once_ << " images at a time";
  else
    out << rows_at_once_ << " rows at a time";
  out << ", " << scratch_floats_ * static_cast<int64_t>(sizeof(float)) << " bytes between them";
  return out.str();
}

void StepGroup::run(const Memory& memory, int thread, int team, double* seconds) const {
  float* scratch = cpu::thread_scratch(cpu::ScratchSlot::kGroup, scratch_floats_);
  Memory local = memory;
  if (images_at_once_ > 0) {
    const auto [begin, end] = cpu::share(images_, 1, thread, team);
    const int64_t turns = (end - begin + images_at_once_ - 1) / images_at_once_;
    for (int64_t turn = 0; turn < turns; ++turn)
      run_images(local, begin + (end - begin) * turn / turns, begin + (end - begin) * (turn + 1) / turns,
                 scratch, seconds);
    return;
  }
  const auto [begin, end] = cpu::share(images_ * strips(), 1, thread, team);
  std::vector<Rows> left;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t first = part % strips() * rows_at_once_;
    if (first == 0) left.clear();
    std::vector<Rows> wanted = rows_of_steps({first, std::min(first + rows_at_once_, height_)});
    run_strip(local, part / strips(), wanted, left, scratch, seconds);
    left = std::move(wanted);
  }
}

// rows_of(step): over all images.
template <class RowsOf>
void StepGroup::run_steps(const Memory& memory, RowsOf&& rows_of, double* seconds) const {
  double last = seconds ? now_seconds() : 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Rows rows = rows_of(i);
    // None where all that a strip's readers want lies in the padding.
    if (!rows.none()) steps_[i]->compute_rows(memory, rows.begin, rows.end);
    if (!seconds) continue;
    const double now = now_seconds();
    seconds[i] += now - last;
    last = now;
  }
}

// Steps count images from the first of the batch: the thread's memory stands where the part would lie.
void StepGroup::run_images(Memory& local, int64_t begin, int64_t end, float* scratch, double* seconds) const {
  for (const Inside& inside : inside_)
    local.buffers[inside.place.buffer] =
        reinterpret_cast<float*>(values16(scratch + inside.offset) - begin * inside.place.image());
  // A step's borders right before it: until then other values may lie there.
  const auto rows_of = [&](size_t i) {
    const int64_t height = steps_[i]->writes().size.height;
    steps_[i]->fill_borders(local, begin * height, end * height);
    return Rows{begin * height, end * height};
  };
  run_steps(local, rows_of, seconds);
}

void StepGroup::Rows::add(const Rows& other) {
  if (other.none()) return;
  *this = none() ? other : Rows{std::min(begin, other.begin), std::max(end, other.end)};
}

// From the last step back: all rows that its readers want of a value, whoever of them comes first.
std::vector<StepGroup::Rows> StepGroup::rows_of_steps(Rows last) const {
  std::vector<Rows> all(steps_.size(), Rows{0, 0});
  all.back() = last;
  const auto whole = [&](size_t step) {
    const int64_t rows = steps_[step]->rows_together(), height = steps_[step]->writes().size.height;
    all[step] = {all[step].begin / rows * rows, std::min((all[step].end + rows - 1) / rows * rows, height)};
  };
  for (size_t reader = steps_.size(); reader-- > 1;) {
    if (all[reader].none()) continue;
    whole(reader);
    const Rows& rows = all[reader];
    const std::vector<Place>& reads = steps_[reader]->reads();
    for (size_t operand = 0; operand < reads.size(); ++operand) {
      for (size_t writer = 0; writer < reader; ++writer) {
        const Place& written = steps_[writer]->writes();
        if (written.buffer != reads[operand].buffer) continue;
        const auto [stride, before, extent] = *steps_[reader]->window_of(operand);
        const int64_t height = written.size.height;
        all[writer].add({std::clamp<int64_t>(rows.begin * stride - before, 0, height),
                         std::clamp<int64_t>((rows.end - 1) * stride - before + extent, 0, height)});
      }
    }
  }
  if (!all[0].none()) whole(0);
  return all;
}

std::vector<StepGroup::Rows> StepGroup::rows_to_compute(std::vector<Rows> wanted,
                                                        const std::vector<Rows>& left) const {
  for (const Inside& inside : inside_) {
    if (!inside.keeps || left.empty()) continue;
    for (size_t i = 0; i + 1 < steps_.size(); ++i)
      if (steps_[i]->writes().buffer == inside.place.buffer)
        wanted[i].begin = std::clamp(left[i].end, wanted[i].begin, wanted[i].end);
  }
  return wanted;
}

void StepGroup::move_kept(float* scratch, const std::vector<Rows>& wanted,
                          const std::vector<Rows>& left) const {
  for (const Inside& inside : inside_) {
    const Rows &now = wanted[inside.writer], &before = left[inside.writer];
    const int64_t row = inside.place.row(), rows = std::min(before.end, now.end) - now.begin;
    if (!inside.keeps || rows <= 0) continue;
    uint16_t* to = values16(scratch + inside.offset) + inside.place.border.top * row;
    std::memmove(to, to + (now.begin - before.begin) * row, rows * row * sizeof(uint16_t));
  }
}

void StepGroup::run_strip(Memory& local, int64_t image, const std::vector<Rows>& wanted,
                          const std::vector<Rows>& left, float* scratch, double* seconds) const {
  for (const Inside& inside : inside_)
    local.buffers[inside.place.buffer] =
        reinterpret_cast<float*>(values16(scratch + inside.offset) - image * inside.place.image() -
                                 wanted[inside.writer].begin * inside.place.row());
  if (!left.empty()) move_kept(scratch, wanted, left);
  const std::vector<Rows> computed = rows_to_compute(wanted, left);
  const auto rows_of = [&](size_t i) {
    const Place& to = steps_[i]->writes();
    const Rows& rows = computed[i];
    if (to.fills_border)
      cpu::zero_border_of_strip(to.view16(local), to.size, to.border, image, rows.begin, rows.end);
    const int64_t first = image * to.size.height;
    return Rows{first + rows.begin, first + rows.end};
  };
  run_steps(local, rows_of, seconds);
}

}  // namespace cnnfast::plan
