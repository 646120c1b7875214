// Products of register blocks of neighbouring pixels (kEvenTiles), which only AVX2 has so far: other sets
// need the name, and may take the blocks once they are measured there.
#pragma once
#include <stdint.h>

namespace {

// acc[j] += value * w[j], where the value lies kTimes distances and kStep floats behind `base`.
template <int kTimes, int kStep, int NV>
inline void add_products(const float* base, int64_t distance, const Vec (&w)[NV], Vec (&acc)[NV]) {
  const Vec value = Vec::set1(base[kTimes * distance + kStep]);
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) acc[j] = Vec::fma(value, w[j], acc[j]);
}

}  // namespace
