// Weights that do not stay in the second-level cache: those of the next pass are fetched while those of this
// one are multiplied, or memory would rest as long as a pass computes.
#pragma once
#include <stdint.h>

namespace {

// Weights of one thread that stay in its second-level cache beside the pixels they meet.
constexpr int64_t kResidentFloats = 1 << 16;
constexpr int64_t kLineFloats = 16;
// Products by address take so many steps at once, so that several register blocks can share what they fetch:
// one line for every step asked for by one block alone is more than memory gives at a time.
constexpr int64_t kStreamSteps = kAddressedProducts ? 4 : 1;
// Pixels of more values than this come from far memory: the next ones are fetched while these are worked on.
constexpr int64_t kNearFloats = 1 << 17;

// What one register block fetches at every kStreamSteps steps of its dot products.
struct Stream {
  int64_t ahead = 0;  // floats from the weights it reads
  int64_t lines = 0;

  // The share of block `t` out of `blocks` that read the same weights, NV vectors at a step.
  template <int NV>
  static Stream share(int64_t ahead, int64_t t, int64_t blocks) {
    constexpr int64_t all = (kStreamSteps * NV * Vec::kWidth + kLineFloats - 1) / kLineFloats;
    const int64_t each = (all + blocks - 1) / blocks, first = t * each;
    if (first >= all) return {};
    return {ahead + first * kLineFloats, all - first < each ? all - first : each};
  }

  // What lies beyond the weights' end may be asked for, too: a fetch reads nothing.
  void fetch(const float* weight) const {
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(weight + ahead + i * kLineFloats, 0, 2);
  }
};

}  // namespace
