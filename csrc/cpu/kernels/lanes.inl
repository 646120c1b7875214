// Channels in vectors of the widest kind that they fill: fewer than a vector register holds take its halves
// and quarters. A masked store would keep a load behind it waiting, and half of a register is half the work.
#pragma once
#include <stdint.h>

namespace {

constexpr int64_t kLeastLanes = 4;

// Adjacent values as one; `count` of them where not kWhole.
template <int64_t kLanes, bool kWhole>
struct Lanes {
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Numbers __attribute__((vector_size(kLanes * sizeof(int32_t))));

  Floats load(const float* p) const {
    Floats v{};
    __builtin_memcpy(&v, p, bytes(p));
    return v;
  }
  Floats load(const uint16_t* p) const {  // bfloat16
    uint16_t from[kLanes] = {};
    __builtin_memcpy(from, p, bytes(p));
    uint32_t bits[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
    Floats v;
    __builtin_memcpy(&v, bits, sizeof(v));
    return v;
  }
  void store(Floats v, float* p) const { __builtin_memcpy(p, &v, bytes(p)); }

  int64_t count;

 private:
  template <class T>
  __SIZE_TYPE__ bytes(const T*) const {
    return static_cast<__SIZE_TYPE__>(kWhole ? kLanes : count) * sizeof(T);
  }
};

// body(lanes, channel) for all channels from `channel` on.
template <int64_t kLanes, class Body>
inline void for_lanes(int64_t channels, int64_t channel, Body&& body) {
  for (; channels - channel >= kLanes; channel += kLanes) body(Lanes<kLanes, true>{kLanes}, channel);
  if (channel == channels) return;
  if constexpr (kLanes > kLeastLanes)
    for_lanes<kLanes / 2>(channels, channel, body);
  else
    body(Lanes<kLanes, false>{channels - channel}, channel);
}

}  // namespace
