// Tiles of AMX: eight registers of 16 rows of 64 bytes. Written as assembly with a memory clobber: the
// compiler's own intrinsics name neither what a load reads nor, in some versions, the right registers.
//
// CNNFAST_EMULATE_AMX: the same in plain C++, for the tests of the kernels on other machines.
// CNNFAST_AMX_STAND_IN: instructions that take as long on another CPU with AVX-512, and compute nothing; for
// finding out what else takes time (docs/performance.md).
#pragma once
#include <stdint.h>

namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

#if defined(CNNFAST_EMULATE_AMX)

struct EmulatedTiles {
  bool configured = false;
  unsigned char bytes[8][kTileRows][kTileBytes];
  unsigned char* row(int tile, int r) {
    if (!configured) __builtin_trap();
    return bytes[tile][r];
  }
};
inline thread_local EmulatedTiles emulated_tiles;

struct Tiles {
  static void configure() { emulated_tiles.configured = true; }
  static void release() { emulated_tiles.configured = false; }
  template <int T>
  static void zero() {
    for (int r = 0; r < kTileRows; ++r) __builtin_memset(emulated_tiles.row(T, r), 0, kTileBytes);
  }
  template <int T>
  static void load(const void* from, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r)
      __builtin_memcpy(emulated_tiles.row(T, r), static_cast<const char*>(from) + r * stride, kTileBytes);
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r)
      __builtin_memcpy(static_cast<char*>(to) + r * stride, emulated_tiles.row(T, r), kTileBytes);
  }
  // C += A B, A of 16 rows of pairs, B of 16 pairs of rows.
  template <int C, int A, int B>
  static void multiply() {
    for (int m = 0; m < kTileRows; ++m) {
      float sum[16];
      __builtin_memcpy(sum, emulated_tiles.row(C, m), kTileBytes);
      for (int k = 0; k < 32; ++k) {
        const float a = value(emulated_tiles.row(A, m), k);
        for (int n = 0; n < 16; ++n) sum[n] += a * value(emulated_tiles.row(B, k / 2), 2 * n + k % 2);
      }
      __builtin_memcpy(emulated_tiles.row(C, m), sum, kTileBytes);
    }
  }

 private:
  static float value(const unsigned char* row, int i) {
    const uint32_t bits = static_cast<uint32_t>(row[2 * i]) << 16 | static_cast<uint32_t>(row[2 * i + 1])
                                                                        << 24;
    float x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
  }
};

#elif defined(CNNFAST_AMX_STAND_IN)

struct Tiles {
  static void configure() {}
  static void release() {}
  template <int T>
  static void zero() {}
  // Sixteen cache lines, two a cycle: halves of them, of which AMD's Zen 4 loads two, and one whole.
  template <int T>
  static void load(const void* from, int64_t stride) {
    const char* even = static_cast<const char*>(from);
    const char* odd = even + 4 * stride;
    asm volatile(
        ".rept 2\n\t"
        "vmovups (%0),%%ymm31\n\tvmovups (%0,%2),%%ymm31\n\t"
        "vmovups (%0,%2,2),%%ymm31\n\tvmovups (%0,%3),%%ymm31\n\t"
        "vmovups (%1),%%ymm31\n\tvmovups (%1,%2),%%ymm31\n\t"
        "vmovups (%1,%2,2),%%ymm31\n\tvmovups (%1,%3),%%ymm31\n\t"
        "leaq (%0,%2,8),%0\n\tleaq (%1,%2,8),%1\n\t"
        ".endr"
        : "+r"(even), "+r"(odd)
        : "r"(stride), "r"(3 * stride)
        : "memory", "xmm31");
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    asm volatile("vpxord %%zmm31,%%zmm31,%%zmm31" : : : "xmm31");
    for (int r = 0; r < kTileRows; ++r)
      asm volatile("vmovups %%zmm31,(%0)" : : "r"(static_cast<char*>(to) + r * stride) : "memory");
  }
  // One instruction that keeps a unit of its own busy for sixteen cycles on AMD's Zen 4, as tdpbf16ps is said
  // to; vectors are free meanwhile.
  template <int C, int A, int B>
  static void multiply() {
    typedef double Eight __attribute__((vector_size(kTileBytes)));
    asm volatile("vsqrtpd %0,%%zmm31" : : "v"(Eight{} + 2.0) : "xmm31");
  }
};

#else

struct Tiles {
  // All eight with 16 rows of 64 bytes.
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = kTileBytes;
      config.rows[t] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static void release() { asm volatile("tilerelease" : : : "memory"); }
  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  template <int T>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
  }
  // C += A B, A of 16 rows of pairs, B of 16 pairs of rows.
  template <int C, int A, int B>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

#endif

}  // namespace
