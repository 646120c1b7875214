// Arguments of local response normalisation. Plain C++.
#pragma once
#include "cuda/memory.h"

namespace cnnfast::cuda {

constexpr int kStretch = kBlockThreads * kLanes;
constexpr int kMostReach = 64;  // channels before or behind; backward reaches twice as far
static_assert(2 * kMostReach % kLanes == 0, "the reach is whole packs");

template <typename T>
struct LrnArgs {
  Global<const T> input, grad;  // grad: backward
  Global<T> output;
  int64_t size;  // values
  int32_t channels;
  int32_t before, behind;  // channels that the window has around its own
  float scale;             // alpha / size
  float beta, k;
  bool vectors;  // addresses are multiples of 16 bytes
};

// Windows that the kernels hold: `size` channels, of which size / 2 come before.
inline bool lrn_fits(int64_t size) { return size / 2 <= kMostReach / 2; }

template <typename T>
LrnArgs<T> lrn_args(const T* input, const T* grad, T* output, int64_t values, int64_t channels, int64_t size,
                    double alpha, double beta, double k) {
  const bool vectors = is_vector_aligned(input) && is_vector_aligned(grad) && is_vector_aligned(output);
  return {input,
          grad,
          output,
          values,
          static_cast<int32_t>(channels),
          static_cast<int32_t>(size / 2),
          static_cast<int32_t>((size - 1) / 2),
          static_cast<float>(alpha / static_cast<double>(size)),
          static_cast<float>(beta),
          static_cast<float>(k),
          vectors};
}

}  // namespace cnnfast::cuda
