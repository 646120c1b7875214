// Products of whole numbers in a block of tiles: between kernels/winograd_fixed.inl's ways there and back.
#pragma once
#include "cpu/fixed_winograd.h"
#include "cpu/kernels/winograd_strided.inl"
#include "cpu/vec16/avx512_vnni.h"

namespace {

// Tiles of a register block.
constexpr int kFixedTiles = 12;
// Weights of one thread that stay in its second-level cache; others are asked for so far ahead of the
// products.
constexpr int64_t kResidentNumbers = 1 << 17, kAheadNumbers = 1 << 12;

// Where the parts of a block of tiles lie in scratch memory. Numbers: point, chunk, tile, channel. Scales:
// chunk, tile, point. Products: point, panel, tile, channel. Distances of points are kept off multiples of 4
// KB, which would put all points into one set of the first-level cache.
struct FixedScratch {
  int64_t chunk, point;  // of numbers
  int64_t scale_tile, scale_chunk;
  int64_t product_row, product_panel, product_point;
  int64_t scales, products, stage, floats;  // beginnings, and the end
  FixedScratch(const FixedWinogradCall& c, int points) {
    const FixedChunks chunks(c.in_channels);
    chunk = c.block_tiles * kFixedChunk;
    point = chunks.count * chunk + 32;
    scale_tile = (points + 15) / 16 * 16;
    scale_chunk = c.block_tiles * scale_tile;
    product_row = c.panel_vectors * Vec::kWidth;
    product_panel = c.block_tiles * product_row;
    product_point = c.block_panels * product_panel + Vec::kWidth;
    scales = points * point / 2;
    products = scales + chunks.count * scale_chunk;
    stage = products + points * product_point;
    floats = stage + scale_tile * kFixedChunk;
  }
};

// R tiles of NV vectors of output channels at one point. numbers: of the first tile and chunk; scale: of the
// first tile and chunk.
template <int NV, int R>
void fixed_multiply(const FixedWinogradCall& c, const FixedScratch& s, const int16_t* numbers,
                    const float* scale, const int16_t* weight, float* out, bool fetches) {
  const FixedChunks chunks(c.in_channels);
  for (int64_t k = 0; k < chunks.count; ++k, numbers += s.chunk, scale += s.scale_chunk) {
    const int64_t left = c.in_channels - k * chunks.length;
    const int64_t pairs = ((left < chunks.length ? left : chunks.length) + 1) / 2;
    __m512i acc[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = _mm512_setzero_si512();
    const int16_t* b = weight + k * chunks.length * NV * Vec::kWidth;
    for (int64_t p = 0; p < pairs; ++p, b += 2 * NV * Vec::kWidth) {
      __m512i w[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        if (fetches) __builtin_prefetch(b + kAheadNumbers + 2 * j * Vec::kWidth, 0, 2);
        w[j] = Fixed::load(b + 2 * j * Vec::kWidth);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512i pair = Fixed::spread(numbers + r * kFixedChunk + 2 * p);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) Fixed::add_pairs(acc[r][j], pair, w[j]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec back = Vec::set1(scale[r * s.scale_tile]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        float* to = out + r * s.product_row + j * Vec::kWidth;
        const Vec sums = Fixed::value(acc[r][j]);
        (k == 0 ? sums * back : Vec::fma(sums, back, Vec::load(to))).store(to);
      }
    }
  }
}

template <int NV, int R = kFixedTiles>
void fixed_multiply_rows(int64_t rows, const FixedWinogradCall& c, const FixedScratch& s,
                         const int16_t* numbers, const float* scale, const int16_t* weight, float* out,
                         bool fetches) {
  if (rows == R) return fixed_multiply<NV, R>(c, s, numbers, scale, weight, out, fetches);
  if constexpr (R > 1) fixed_multiply_rows<NV, R - 1>(rows, c, s, numbers, scale, weight, out, fetches);
}

// Which weights go with a point, and whether it is the first that takes them.
struct PointWeights {
  int point, kernel;
  bool is_first;
};

// Panels [begin, end) of a point and all tiles of a block.
void fixed_point_products(const FixedWinogradCall& c, const FixedScratch& s, const PointWeights& p,
                          int64_t tiles, int64_t begin, int64_t end, bool fetches) {
  const int64_t w = Vec::kWidth, vectors = (c.channels + w - 1) / w,
                depth = FixedChunks(c.in_channels).channels();
  const int64_t blocks = (tiles + kFixedTiles - 1) / kFixedTiles;
  const auto* numbers = reinterpret_cast<const int16_t*>(c.scratch);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * c.panel_vectors;
    const int64_t used = vectors - first < c.panel_vectors ? vectors - first : c.panel_vectors;
    const int16_t* weight = c.weight + (p.kernel * vectors + first) * w * depth;
    float* product = c.scratch + s.products + p.point * s.product_point + (panel - begin) * s.product_panel;
    for (int64_t t = 0; t < blocks; ++t) {
      const int64_t from = tiles * t / blocks, to = tiles * (t + 1) / blocks;
      const auto run = used == 1 ? fixed_multiply_rows<1> : fixed_multiply_rows<2>;
      run(to - from, c, s, numbers + p.point * s.point + from * kFixedChunk,
          c.scratch + s.scales + from * s.scale_tile + p.point, weight, product + from * s.product_row,
          fetches && p.is_first && t == 0);
    }
  }
}

// Panels [begin, end) of all points and tiles of a block; points that share weights one behind the other.
template <class Side, bool kLine>
void fixed_products(const FixedWinogradCall& c, const FixedScratch& s, int64_t tiles, int64_t begin,
                    int64_t end, bool fetches) {
  constexpr int kSide = Side::kKernels, kPoints = Side::end(kSide - 1);
  for (int i = 0; i < (kLine ? 1 : kSide); ++i)
    for (int j = 0; j < kSide; ++j)
      for (int y = Side::begin(i); y < (kLine ? 1 : Side::end(i)); ++y)
        for (int x = Side::begin(j); x < Side::end(j); ++x)
          fixed_point_products(c, s,
                               {y * kPoints + x, i * kSide + j, y == Side::begin(i) && x == Side::begin(j)},
                               tiles, begin, end, fetches);
}

}  // namespace
