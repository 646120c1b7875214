// The operator that measures how far two cores are from one another.
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

constexpr int kHandOvers = 400;  // of a sample: some tens of microseconds
constexpr int kSpins = 1 << 16;  // before a thread lets another one have its core

// A line of its own, which two threads write in turn.
struct alignas(64) Line {
  std::atomic<int> turn{0};
  void wait_for(int turn_of_mine) {
    for (int spins = 1; turn.load(std::memory_order_acquire) != turn_of_mine; ++spins)
      if (spins % kSpins == 0) sched_yield();
  }
};

// Thread 0 writes the odd numbers and thread 1 the even ones, each when it has read the other's.
double sample(Line& line, int thread, Barrier& barrier) {
  using Clock = std::chrono::steady_clock;
  if (thread == 0) line.turn.store(0, std::memory_order_relaxed);
  barrier.wait();
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < kHandOvers; i += 2) {
    if (thread == 0) {
      line.turn.store(i + 1, std::memory_order_release);
      line.wait_for(i + 2);
    } else if (thread == 1) {
      line.wait_for(i + 1);
      line.turn.store(i + 2, std::memory_order_release);
    }
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  barrier.wait();
  return seconds / kHandOvers;
}

// The least of many short samples: a thread that was kept from running lengthens a sample.
double measure_hand_over(double seconds) {
  TORCH_CHECK(std::isfinite(seconds) && seconds >= 0,
              "cnnfast::measure_hand_over: seconds must be finite and not negative, not ", seconds);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  Line line;
  double least = std::numeric_limits<double>::infinity();
  bool over = false;
  parallel_team(std::min(2, team_size()), [&](int thread, int team, Barrier& barrier) {
    if (team < 2) return;
    do {
      const double taken = sample(line, thread, barrier);
      if (thread == 0) {
        least = std::min(least, taken);
        over = Clock::now() >= deadline;
      }
      barrier.wait();
    } while (!over);
  });
  return std::isfinite(least) ? least : 0.0;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CatchAll, m) { m.impl("measure_hand_over", TORCH_FN(measure_hand_over)); }

}  // namespace cnnfast::cpu
