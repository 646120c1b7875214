// One OpenMP parallel region with a team whose size is known inside, and a barrier for that team.
#pragma once
#include <ATen/Parallel.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

namespace cnnfast::cpu {

// True in a forked process: the OpenMP pool of its parent is gone, and a parallel region would wait for it
// for ever.
bool in_forked_child();

inline int team_size() {
  if (omp_in_parallel() || in_forked_child()) return 1;
  return std::max(1, at::get_num_threads());
}

// Threads for a pass over so many elements: few are done before others wake.
inline int threads_for(int64_t elements) {
  constexpr int64_t kSerial = 1 << 14;
  return elements < kSerial ? 1 : team_size();
}

// A team may be smaller than asked for, so it is sized inside the region. Spins briefly, then sleeps: with
// more threads than free cores, spinning alone would wait for whole time slices.
class Barrier {
 public:
  explicit Barrier(int team) : team_(team) {}
  void wait() {
    wait([] { return false; });
  }
  // meanwhile(): a little work for a thread that has to wait; called again until it gives false.
  template <class Meanwhile>
  void wait(Meanwhile&& meanwhile) {
    if (team_ == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
#if defined(__cpp_lib_atomic_wait)
      phase_.notify_all();
#endif
      return;
    }
    bool more = true;
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (more)
        more = meanwhile();
      else if (spins < kSpins)
        pause();
      else
        give_way(phase);
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  void give_way(int phase) {
#if defined(__cpp_lib_atomic_wait)
    phase_.wait(phase, std::memory_order_acquire);
#else
    (void)phase;
    sched_yield();
#endif
  }
  static constexpr int kSpins = 4000;  // some tens of microseconds
  const int team_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

// Runs body(thread, team, barrier) on `threads` threads at most. The body must not throw.
template <class Body>
void parallel_team(int threads, Body&& body) {
  if (threads <= 1) {
    Barrier barrier(1);
    body(0, 1, barrier);
    return;
  }
  alignas(64) unsigned char storage[sizeof(Barrier)];
  Barrier* barrier = nullptr;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    barrier = new (storage) Barrier(omp_get_num_threads());
    body(omp_get_thread_num(), omp_get_num_threads(), *barrier);
  }
  barrier->~Barrier();
}

// Part `thread` of [0, count), cut at multiples of `grain`.
inline std::pair<int64_t, int64_t> share(int64_t count, int64_t grain, int thread, int team) {
  const int64_t units = (count + grain - 1) / grain;
  return {std::min(count, units * thread / team * grain),
          std::min(count, units * (thread + 1) / team * grain)};
}

// Part `thread` of the pixels of `rows` rows: whole rows, as steps of other kinds share them, so that a
// thread reads what it wrote itself; cut at multiples of `grain` where that is more even by a thirtieth.
inline std::pair<int64_t, int64_t> share_pixels(int64_t rows, int64_t width, int64_t grain, int thread,
                                                int team) {
  const int64_t pixels = rows * width, grains = (pixels + grain - 1) / grain;
  const int64_t most_by_rows = (rows + team - 1) / team * width, most = (grains + team - 1) / team * grain;
  const bool by_rows = most_by_rows - most <= most / 30;
  return share(pixels, by_rows ? std::max<int64_t>(width, 1) : grain, thread, team);
}

}  // namespace cnnfast::cpu
