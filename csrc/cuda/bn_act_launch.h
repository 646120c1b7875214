// How bn_act_forward is launched: width of the accesses and size of the grid. Plain C++, tested on the host.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda/bn_act.cuh"

namespace cnnfast::cuda {

constexpr int kVectorBytes = 16;

inline bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;  // nullptr (no residual) is
}

// Elements per access: 16 bytes where every pointer allows it, else one.
template <typename Args>
int bn_act_lanes(const Args& args) {
  const bool aligned =
      is_vector_aligned(args.input) && is_vector_aligned(args.residual) && is_vector_aligned(args.output);
  return aligned ? kVectorBytes / static_cast<int>(sizeof(*args.input)) : 1;
}

// Enough blocks to fill the device, rounded down (to no less than half) so that a thread meets the same
// channels in every round of its loop, where the channel count allows it.
inline int bn_act_blocks(int64_t size, int64_t channels, int lanes, int processors) {
  const int64_t packs = (size + lanes - 1) / lanes;
  const int64_t needed = (packs + kBlockThreads - 1) / kBlockThreads;
  const int64_t wanted = std::clamp<int64_t>(needed, 1, int64_t{processors} * kBlocksPerProcessor);
  const int64_t packs_per_period = channels / std::gcd<int64_t>(channels, lanes);
  const int64_t multiple = packs_per_period / std::gcd<int64_t>(packs_per_period, kBlockThreads);
  return static_cast<int>(multiple <= wanted ? wanted / multiple * multiple : wanted);
}

}  // namespace cnnfast::cuda
