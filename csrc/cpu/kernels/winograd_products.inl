// The n x n matrix products of transformed tiles with packed weights.
#pragma once
#include "cpu/kernels/conv_tile.inl"
#include "cpu/kernels/winograd_tiles.inl"

namespace {

// R tiles x channels times channels x (NV vectors): `a` begins the first block of channels, `block` is the
// distance of the next. Added to what is there, or in its place.
template <int NV, int R>
void winograd_multiply(const float* a, int64_t block, const float* b, int64_t channels, float* out,
                       int64_t out_row, const Stream& stream, bool adds) {
  Vec acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      acc[r][j] = adds ? Vec::load(out + r * out_row + j * Vec::kWidth) : Vec::zero();
  for (; channels > 0; channels -= kBlockChannels, a += block) {
    const int64_t length = channels < kBlockChannels ? channels : kBlockChannels;
    if constexpr (kAddressedProducts) {
      const float* rows[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) rows[r] = a + r * kBlockChannels;
      stream.lines ? multiply_until<true>(rows, 0, length, b, stream, acc)
                   : multiply_until<false>(rows, 0, length, b, stream, acc);
    } else {
      for (int64_t k = 0; k < length; ++k, b += NV * Vec::kWidth) {
        stream.fetch(b);
        Vec w[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) w[j] = Vec::load(b + j * Vec::kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec x = Vec::set1(a[r * kBlockChannels + k]);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) acc[r][j] = Vec::fma(x, w[j], acc[r][j]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[r][j].store(out + r * out_row + j * Vec::kWidth);
}

template <int NV, int R = kWinogradRows[NV - 1]>
inline void winograd_multiply_rows(int64_t rows, const float* a, int64_t block, const float* b,
                                   int64_t channels, float* out, int64_t out_row, const Stream& stream,
                                   bool adds) {
  if (rows == R) return winograd_multiply<NV, R>(a, block, b, channels, out, out_row, stream, adds);
  if constexpr (R > 1)
    winograd_multiply_rows<NV, R - 1>(rows, a, block, b, channels, out, out_row, stream, adds);
}

// One panel of one point: all tiles of a block, by register blocks of equal size, so many channels at a time
// that their weights stay in the first-level cache from one register block to the next. `ahead`: where the
// weights of the next panel lie, in floats from these; 0 where they are not fetched.
template <int NV>
void winograd_product(const WinogradCall& c, const WinogradScratch& s, const float* input,
                      const float* weight, int64_t ahead, float* product, int64_t tiles) {
  const int64_t blocks = (tiles + kWinogradRows[NV - 1] - 1) / kWinogradRows[NV - 1];
  for (int64_t channel = 0; channel < c.in_channels; channel += kWinogradChannels) {
    const int64_t channels =
        c.in_channels - channel < kWinogradChannels ? c.in_channels - channel : kWinogradChannels;
    for (int64_t t = 0; t < blocks; ++t) {
      const int64_t begin = tiles * t / blocks, end = tiles * (t + 1) / blocks;
      const Stream stream = ahead ? Stream::share<NV>(ahead, t, blocks) : Stream{};
      winograd_multiply_rows<NV>(end - begin, input + s.input.offset(begin, channel), s.input.block,
                                 weight + channel * NV * Vec::kWidth, channels,
                                 product + begin * s.product_row, s.product_row, stream, channel > 0);
    }
  }
}

// Point by point, all panels of a point: its transformed tiles stay in the first-level cache meanwhile, and
// weights are read in the order in which they lie.
void winograd_products(const WinogradCall& c, const WinogradScratch& s, int points, const float* input,
                       float* product, int64_t tiles, int64_t panel_begin, int64_t panel_end) {
  static_assert(kWinogradVectors == 2, "add cases below");
  const int64_t w = Vec::kWidth, lanes = c.panel_vectors * w, vectors = (c.channels + w - 1) / w;
  const int64_t point_floats = vectors * w * c.in_channels, panel_floats = lanes * c.in_channels;
  const int64_t last = panel_end * c.panel_vectors < vectors ? panel_end * c.panel_vectors : vectors;
  const bool streams = (last - panel_begin * c.panel_vectors) * w * c.in_channels * points > kResidentFloats;
  for (int point = 0; point < points; ++point) {
    const float* weight = c.weight + point * point_floats + panel_begin * panel_floats;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel, weight += panel_floats) {
      const int64_t next =
          panel + 1 < panel_end ? panel_floats : point_floats - (panel_end - 1 - panel_begin) * panel_floats;
      const auto run = vectors - panel * c.panel_vectors == 1 ? winograd_product<1>
                       : c.panel_vectors == 1                 ? winograd_product<1>
                                                              : winograd_product<2>;
      run(c, s, input + point * s.input.point, weight, streams ? next : 0,
          product + point * s.product_point + (panel - panel_begin) * s.product_panel, tiles);
    }
  }
}

}  // namespace
