// Channels in vectors of the widest kind that they fill: fewer than a vector register holds take its halves
// quarters and so on. A masked store would keep a load behind it waiting, and half of a register is half the
// work.
#pragma once
#include <stdint.h>

namespace {

// Adjacent values as one.
template <int64_t kLanes>
struct Lanes {
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Numbers __attribute__((vector_size(kLanes * sizeof(int32_t))));

  static Floats load(const float* p) {
    Floats v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static Floats load(const uint16_t* p) {  // bfloat16
    uint32_t bits[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) bits[i] = static_cast<uint32_t>(p[i]) << 16;
    Floats v;
    __builtin_memcpy(&v, bits, sizeof(v));
    return v;
  }
  static void store(Floats v, float* p) { __builtin_memcpy(p, &v, sizeof(v)); }
};

template <>
struct Lanes<1> {
  using Floats = float;
  using Numbers = int32_t;

  static float load(const float* p) { return *p; }
  static float load(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float v;
    __builtin_memcpy(&v, &bits, sizeof(v));
    return v;
  }
  static void store(float v, float* p) { *p = v; }
};

// body(lanes, channel) for all channels from `channel` on.
template <int64_t kLanes, class Body>
inline void for_lanes(int64_t channels, int64_t channel, Body&& body) {
  for (; channels - channel >= kLanes; channel += kLanes) body(Lanes<kLanes>{}, channel);
  if constexpr (kLanes > 1)
    if (channel < channels) for_lanes<kLanes / 2>(channels, channel, body);
}

}  // namespace
