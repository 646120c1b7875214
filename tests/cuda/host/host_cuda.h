// Enough of CUDA to run a kernel body on the host: every thread of every block in turn, in a shuffled order,
// so that a result which depends on the order differs from seed to seed. There is no __syncthreads and no
// __shared__ here on purpose: a kernel that needs them must not compile, rather than run without its
// barriers.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace host_cuda {

inline std::vector<unsigned> shuffled(unsigned count, std::mt19937& random) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

// One block of a one-dimensional grid.
template <typename Kernel, typename... Args>
void run_block(Kernel kernel, unsigned blocks, unsigned threads, unsigned block, const Args&... args) {
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  blockIdx = {block, 0, 0};
  for (unsigned thread = 0; thread < threads; ++thread) {
    threadIdx = {thread, 0, 0};
    kernel(args...);
  }
}

// The counterpart of kernel<<<blocks, threads>>>(args).
template <typename Kernel, typename... Args>
void launch(Kernel kernel, unsigned blocks, unsigned threads, unsigned seed, const Args&... args) {
  std::mt19937 random(seed);
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  for (unsigned block : shuffled(blocks, random)) {
    blockIdx = {block, 0, 0};
    for (unsigned thread : shuffled(threads, random)) {
      threadIdx = {thread, 0, 0};
      kernel(args...);
    }
  }
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace host_cuda
