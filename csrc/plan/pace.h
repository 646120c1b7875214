// How closely the calls of a thread follow each other. Threads of a team wait actively behind a call, for a
// while; then they sleep, and waking them takes longer than a small network.
#pragma once
#include <chrono>

namespace cnnfast::plan {

class Pace {
 public:
  // That of the calling thread.
  static Pace& here() {
    thread_local Pace pace;
    return pace;
  }

  // At the start of a call: whether many calls have come, each a moment behind the other.
  bool is_steady() {
    close_calls_ = Clock::now() - last_end_ < kMoment ? close_calls_ + 1 : 0;
    return close_calls_ >= kMany;
  }
  void call_ended() { last_end_ = Clock::now(); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kMoment{50};
  static constexpr int kMany = 16;
  Clock::time_point last_end_{};
  int close_calls_ = 0;
};

}  // namespace cnnfast::plan
