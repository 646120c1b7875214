#include "cpu/conv_timing.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "cpu/image.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Behind one round that warms up; more while there is time, for short runs scatter more.
constexpr int kLeastRounds = 5;
constexpr int64_t kNanosecondsPerAlgorithm = 20'000'000;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Values in [-1, 1): neither zeros nor denormal numbers, which some CPUs take more time for.
AlignedFloats filled(int64_t count) {
  AlignedFloats values(count);
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values.data()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

struct Candidate {
  ConvJob job;
  AlignedFloats weight;
  int64_t best = std::numeric_limits<int64_t>::max();
};

// The input of all candidates, as large as the one that reads furthest needs it.
ImageSize input_size(const ConvGeometry& g, const std::vector<ConvAlgorithm>& algorithms) {
  Overreach beyond;
  for (const ConvAlgorithm& a : algorithms) {
    ConvGeometry of_algorithm = g;
    of_algorithm.algorithm = a;
    const Overreach o = overreach(of_algorithm);
    beyond = {std::max(beyond.bottom, o.bottom), std::max(beyond.right, o.right)};
  }
  return {g.images, (g.out_height - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1 + beyond.bottom,
          (g.out_width - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1 + beyond.right, g.in_channels};
}

View dense_view(float* data, const ImageSize& s) {
  return {data, s.height * s.width * s.channels, s.width * s.channels, s.channels};
}

void run_in_turn(std::vector<Candidate>& candidates) {
  const AlignedFloats none(0);
  const int64_t start = now();
  const auto enough = static_cast<int64_t>(candidates.size()) * kNanosecondsPerAlgorithm;
  bool more = true;  // written by thread 0 between two barriers
  parallel_team(team_size(), [&](int thread, int team, Barrier& barrier) {
    for (int round = 0; more; ++round) {
      for (Candidate& c : candidates) {
        barrier.wait();
        const int64_t begin = now();
        c.job.run({c.weight, none, none}, thread, team);
        barrier.wait();
        if (thread == 0 && round > 0) c.best = std::min(c.best, now() - begin);
      }
      if (thread == 0) more = round < kLeastRounds || now() - start < enough;
      barrier.wait();
    }
  });
}

}  // namespace

std::vector<int64_t> time_convolution(const ConvGeometry& geometry,
                                      const std::vector<ConvAlgorithm>& algorithms) {
  const ImageSize in = input_size(geometry, algorithms);
  const ImageSize out{geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels};
  AlignedFloats input = filled(in.images * in.height * in.width * in.channels);
  AlignedFloats output(out.images * out.height * out.width * out.channels);
  const AlignedFloats weight = filled(geometry.out_channels * geometry.depth());
  const int64_t kernel = geometry.kernel_h * geometry.kernel_w;
  const WeightStrides strides{geometry.depth(), kernel, geometry.kernel_w, 1};
  std::vector<Candidate> candidates;
  for (const ConvAlgorithm& a : algorithms) {
    ConvGeometry g = geometry;
    g.algorithm = a;
    candidates.push_back({ConvJob(g, dense_view(input.data(), in), dense_view(output.data(), out), {}),
                          pack_weight(g, weight.data(), strides)});
  }
  run_in_turn(candidates);
  std::vector<int64_t> times;
  for (const Candidate& c : candidates) times.push_back(c.best);
  return times;
}

}  // namespace cnnfast::cpu
