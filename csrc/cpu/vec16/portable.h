// Four bfloat16 values as a vector of floats, and back.
#pragma once
#include "cpu/vec/portable.h"

namespace {

typedef uint32_t Unsigned4 __attribute__((vector_size(16)));

struct Bf16 {
  static constexpr bool kCoarse = false;
  static Vec load(const uint16_t* p) { return widened(Unsigned4{p[0], p[1], p[2], p[3]} << 16); }
  static Vec load_first(const uint16_t* p, int64_t n) {
    uint16_t lanes[4] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static void store(Vec x, uint16_t* p) { store_first(x, p, 4); }
  static void store_first(Vec x, uint16_t* p, int64_t n) {
    Unsigned4 u;
    __builtin_memcpy(&u, &x.v, sizeof(u));
    const Unsigned4 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
    const Unsigned4 bits = x.v != x.v ? quiet : rounded;
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(bits[i]);
  }
  static void store_two(Vec x, Vec y, uint16_t* p) {
    store(x, p);
    store(y, p + Vec::kWidth);
  }
  static void store_sum(Vec x, uint16_t* p) { store(x, p); }
  static void store_two_sums(Vec x, Vec y, uint16_t* p) { store_two(x, y, p); }
  static constexpr bool kInterleaves = true;
  static void store_interleaved(Vec x, const uint16_t* others, int64_t lanes, uint16_t* p) {
    uint16_t own[4];
    store(x, own);
    for (int64_t i = 0; i < lanes && i < 4; ++i) {
      p[2 * i] = others[i];
      p[2 * i + 1] = own[i];
    }
  }
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const uint16_t* p, Vec& even, Vec& odd) {
    Unsigned4 u;
    __builtin_memcpy(&u, p, sizeof(u));
    even = widened(u << 16);
    odd = widened(u & 0xffff0000u);
  }

 private:
  static Vec widened(Unsigned4 bits) {
    Vec r;
    __builtin_memcpy(&r.v, &bits, sizeof(r.v));
    return r;
  }
};

// As in avx512_bf16.h.
struct Pairs {
  static void copy_first(const uint16_t* from, int64_t count, uint16_t* to) {
    for (int64_t i = 0; i < 32; ++i) to[i] = i < count ? from[i] : 0;
  }
  static void interleave(const uint16_t* const* pixels, int64_t c, int64_t count, uint16_t* to) {
    for (int p = 0; p < 32; ++p)
      for (int64_t i = 0; i < 16; ++i) to[p / 2 * 32 + 2 * i + p % 2] = i < count ? pixels[p][c + i] : 0;
  }
  static void transpose(const uint16_t* const* pixels, int64_t c, int64_t count, uint16_t* to, int64_t step) {
    for (int p = 0; p < 32; ++p)
      for (int64_t i = 0; i < 16; ++i) to[i * step + p] = i < count ? pixels[p][c + i] : 0;
  }
};

// The 16 exponents of a panel of short pairs (short_pairs.h): upper bytes, then lower ones.
class Exponents {
 public:
  explicit Exponents(const uint8_t* bytes) : bytes_(bytes) {}
  // A group of 128 values.
  void lengthen(const uint8_t* from, uint16_t* to) const {
    for (int i = 0; i < 128; ++i) {
      const int half = i / 64, byte = i % 64, within = byte % 16;
      const int code = half ? from[byte] >> 4 : from[byte] & 0x0f, rest = from[64 + i];
      const int high = bytes_[code] | (rest & 0x80), low = bytes_[16 + code] | (rest & 0x7f);
      to[64 * half + within / 8 * 32 + byte / 16 * 8 + within % 8] = static_cast<uint16_t>(high << 8 | low);
    }
  }

 private:
  const uint8_t* bytes_;
};

// Register block of dot products: pixels, and halves of a panel of output channels.
constexpr int kDotPixels = 2, kDotHalves = 1;
// Of short pairs: which take more time than reading long ones, and are not taken.
constexpr int kShortPixels = 2;

}  // namespace
