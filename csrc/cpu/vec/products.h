// The products of register blocks by address (kAddressedProducts), which only AVX2 has so far: other sets
// need the name, and may take them once they are measured there.
#pragma once
#include <stdint.h>

namespace {

// acc[j] += base[k + kStep] * w[j]
template <int kStep, int NV>
inline void add_products(const float* base, int64_t k, const Vec (&w)[NV], Vec (&acc)[NV]) {
  const Vec value = Vec::set1(base[k + kStep]);
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) acc[j] = Vec::fma(value, w[j], acc[j]);
}

}  // namespace
