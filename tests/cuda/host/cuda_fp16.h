// Stand-in for CUDA's header of the same name: storage and conversions, rounding to nearest even.
#pragma once
#include "emulation.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  // Numbers of one binade are this far apart; nearbyint rounds halves to even. A carry runs into the
  // exponent.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (static_cast<unsigned>(exponent + 14) * 1024 + units))};
}
