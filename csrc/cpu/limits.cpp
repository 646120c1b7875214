// The operators that measure the machine: what its cores compute and read at most.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <chrono>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kArithmeticRounds = int64_t{1} << 17;  // less than a millisecond
constexpr int64_t kReadBytes = int64_t{32} << 20;        // of each thread between two barriers, at least

// When a thread began and ended its part of a round, and its best rate so far; a cache line of its own.
struct alignas(64) Span {
  double begin, end;
  double best = 0;
};

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// From the first thread's begin to the last one's end: a thread that was kept from running lengthens a round.
double seconds_of(const std::vector<Span>& spans, int team) {
  double begin = spans[0].begin, end = spans[0].end;
  for (int thread = 1; thread < team; ++thread) {
    begin = std::min(begin, spans[thread].begin);
    end = std::max(end, spans[thread].end);
  }
  return end - begin;
}

// The best rate of rounds in which every thread calls round(thread), which gives the units that it did;
// rounds begin until `seconds` are over. setup(thread) is called once before.
// Of what cores share, the rate is that of the best whole round: a thread kept from running by another
// program must not let the others look faster. What a core has for itself is the sum of the threads' own best
// rounds, which other programs spoil less.
template <class Setup, class Round>
double best_rate(double seconds, bool shared, Setup&& setup, Round&& round) {
  const int threads = team_size();
  std::vector<Span> spans(threads);
  double best = 0, deadline = 0;
  bool over = false;
  parallel_team(threads, [&](int thread, int team, Barrier& barrier) {
    Span& own = spans[thread];
    setup(thread);
    if (thread == 0) deadline = now_seconds() + seconds;
    do {
      barrier.wait();
      own.begin = now_seconds();
      const double units = round(thread);
      own.end = now_seconds();
      own.best = std::max(own.best, units / (own.end - own.begin));
      barrier.wait();
      if (thread == 0) {
        best = std::max(best, team * units / seconds_of(spans, team));
        over = now_seconds() >= deadline;
      }
      barrier.wait();
    } while (!over);
  });
  if (shared) return best;
  return std::accumulate(spans.begin(), spans.end(), 0.0,
                         [](double sum, const Span& span) { return sum + span.best; });
}

void check_seconds(const char* name, double seconds) {
  TORCH_CHECK(std::isfinite(seconds) && seconds >= 0, "cnnfast::", name,
              ": seconds must be finite and not negative, not ", seconds);
}

double measure_arithmetic(double seconds) {
  check_seconds("measure_arithmetic", seconds);
  const at::Tensor sums = at::empty({team_size(), kLimitFloats}, at::kFloat);
  float* const data = sums.data_ptr<float>();
  const auto setup = [&](int thread) {
    for (int64_t i = 0; i < kLimitFloats; ++i)
      data[thread * kLimitFloats + i] = 1.0f + static_cast<float>(i) / kLimitFloats;
  };
  return best_rate(seconds, false, setup, [&](int thread) {
    return kernels().multiply_adds(data + thread * kLimitFloats, kArithmeticRounds);
  });
}

double measure_reading(int64_t bytes_per_thread, double seconds, bool shared) {
  constexpr int64_t kGrain = kLimitFloats * sizeof(float);
  check_seconds("measure_reading", seconds);
  TORCH_CHECK(bytes_per_thread >= kGrain, "cnnfast::measure_reading: bytes_per_thread must be at least ",
              kGrain, ", not ", bytes_per_thread);
  const int64_t count = bytes_per_thread / kGrain * kLimitFloats;
  const int64_t passes = std::max<int64_t>(1, kReadBytes / bytes_per_thread);
  const at::Tensor parts = at::empty({team_size(), count}, at::kFloat);
  const at::Tensor totals = at::zeros({team_size()}, at::kFloat);
  float* const data = parts.data_ptr<float>();
  float* const total = totals.data_ptr<float>();
  // Written by the thread that reads it: pages never written are all the same zeros in the cache, and on
  // machines with several memories a page lies near the thread that wrote it first.
  const auto setup = [&](int thread) { std::fill_n(data + thread * count, count, 1.0f); };
  return best_rate(seconds, shared, setup, [&](int thread) {
    float sum = 0;
    for (int64_t pass = 0; pass < passes; ++pass) sum += kernels().read_all(data + thread * count, count);
    total[thread] = sum;
    return static_cast<double>(passes * count) * sizeof(float);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CatchAll, m) {
  m.impl("measure_arithmetic", TORCH_FN(measure_arithmetic));
  m.impl("measure_reading", TORCH_FN(measure_reading));
}

}  // namespace cnnfast::cpu
