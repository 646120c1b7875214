// Depth first: steps that a thread runs one after another for a few images, or for a strip of one, before it
// goes on to the next. What they hand on lies in memory of the thread, which stays in its second-level cache.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "plan/phases.h"

namespace cnnfast::plan {

class StepGroup {
 public:
  size_t begin() const { return begin_; }
  size_t end() const { return begin_ + steps_.size(); }
  // Whether enough parts are there for every thread of a team.
  bool fits(int team) const;
  // Runs the thread's share. seconds: null, or per step what it took.
  void run(const Memory& memory, int thread, int team, double* seconds) const;
  // Buffers that steps of the group alone use.
  bool has_inside(int buffer) const;
  std::string text() const;

 private:
  friend class GroupFinder;
  friend struct GroupWorth;
  struct Rows {
    int64_t begin, end;
    bool none() const { return begin == end; }
    void add(const Rows& other);
  };
  // A buffer's memory during a part.
  struct Inside {
    Place place;
    size_t writer;       // step of the group that writes it, where parts are strips
    int64_t offset;      // floats
    bool keeps = false;  // the next strip finds the rows there that it wants, too
  };

  int64_t strips() const { return (height_ + rows_at_once_ - 1) / rows_at_once_; }
  // local: the memory of the call, where buffers inside are moved to the part.
  void run_images(Memory& local, int64_t begin, int64_t end, float* scratch, double* seconds) const;
  // wanted: rows_of_steps of the strip; left: of the one before, if it was the image's and this thread's.
  void run_strip(Memory& local, int64_t image, const std::vector<Rows>& wanted, const std::vector<Rows>& left,
                 float* scratch, double* seconds) const;
  // Rows that strips keep move to where the next one looks for them.
  void move_kept(float* scratch, const std::vector<Rows>& wanted, const std::vector<Rows>& left) const;
  template <class RowsOf>
  void run_steps(const Memory& memory, RowsOf&& rows_of, double* seconds) const;
  // What every step's readers want for rows of the last.
  std::vector<Rows> rows_of_steps(Rows last) const;
  // What every step has to compute, behind what is left.
  std::vector<Rows> rows_to_compute(std::vector<Rows> wanted, const std::vector<Rows>& left) const;

  size_t begin_ = 0;
  std::vector<const RowStep*> steps_;
  std::vector<Inside> inside_;
  int64_t scratch_floats_ = 0;
  int64_t images_ = 0, height_ = 0;  // of the last step's output
  int64_t images_at_once_ = 0;       // 0: strips
  int64_t rows_at_once_ = 0;         // of the last output
};

// external[b]: buffer b is an output tensor.
std::vector<StepGroup> find_groups(const Steps& steps, const std::vector<bool>& external);

}  // namespace cnnfast::plan
