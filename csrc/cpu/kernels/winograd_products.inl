// The n x n matrix products of transformed tiles with packed weights.
#pragma once
#include "cpu/kernels/conv_tile.inl"
#include "cpu/kernels/winograd_tiles.inl"

namespace {

// What the register blocks of one panel of one point share.
struct WinogradPanel {
  const float* input;  // of the first tile
  int64_t block;       // distance of two blocks of channels
  const float* weight;
  int64_t channels;
  float* product;  // of the first tile
  int64_t row;     // distance of two tiles
  bool adds;       // to what is there, or takes its place
};

// `blocks` register blocks of R tiles by NV vectors of output channels, from tile `tile` on.
template <int NV, int R, bool kStreams>
void winograd_multiply(const WinogradPanel& p, int64_t tile, int64_t blocks, const Stream& stream) {
  const float* input = p.input + tile * kBlockChannels;
  float* product = p.product + tile * p.row;
  for (; blocks > 0; --blocks, input += R * kBlockChannels, product += R * p.row) {
    float* out[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) out[r] = product + r * p.row;
    Vec acc[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = p.adds ? Vec::load(out[r] + j * Vec::kWidth) : Vec::zero();
    const float *a = input, *b = p.weight;
    for (int64_t left = p.channels; left > 0; left -= kBlockChannels, a += p.block) {
      const int64_t length = left < kBlockChannels ? left : kBlockChannels;
      if constexpr (kAddressedProducts) {
        const float* rows[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) rows[r] = a + r * kBlockChannels;
        multiply_until<kStreams>(rows, 0, length, b, stream, acc);
      } else {
        for (int64_t k = 0; k < length; ++k, b += NV * Vec::kWidth) {
          if constexpr (kStreams) stream.fetch(b);
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
      for (int j = 0; j < NV; ++j) acc[r][j].store(out[r] + j * Vec::kWidth);
  }
}

// Register blocks [begin, end) of `all` of a panel, all of R tiles. Each fetches its share of what lies
// `ahead` floats from the weights; 0: nothing is fetched.
template <int NV, int R>
void winograd_multiply_blocks(const WinogradPanel& p, int64_t tile, int64_t begin, int64_t end, int64_t all,
                              int64_t ahead) {
  if (!ahead) return winograd_multiply<NV, R, false>(p, tile, end - begin, {});
  for (int64_t t = begin; t < end; ++t, tile += R) {
    const Stream stream = Stream::share<NV>(ahead, t, all);
    stream.lines ? winograd_multiply<NV, R, true>(p, tile, 1, stream)
                 : winograd_multiply<NV, R, false>(p, tile, 1, stream);
  }
}

template <int NV, int R = kWinogradRows[NV - 1]>
inline void winograd_multiply_rows(int64_t rows, const WinogradPanel& p, int64_t tile, int64_t begin,
                                   int64_t end, int64_t all, int64_t ahead) {
  if (rows == R) return winograd_multiply_blocks<NV, R>(p, tile, begin, end, all, ahead);
  if constexpr (R > 1) winograd_multiply_rows<NV, R - 1>(rows, p, tile, begin, end, all, ahead);
}

// All tiles of a block, by register blocks of equal size. `ahead`: where the weights of the next panel lie,
// in floats from these; 0 where they are not fetched.
template <int NV>
void winograd_blocks(const WinogradPanel& p, int64_t tiles, int64_t ahead) {
  const int64_t blocks = (tiles + kWinogradRows[NV - 1] - 1) / kWinogradRows[NV - 1];
  const int64_t least = tiles / blocks, larger = tiles % blocks;
  if (larger) winograd_multiply_rows<NV>(least + 1, p, 0, 0, larger, blocks, ahead);
  winograd_multiply_rows<NV>(least, p, larger * (least + 1), larger, blocks, blocks, ahead);
}

// One panel of one point, so many channels at a time that their weights stay in the first-level cache from
// one register block to the next.
template <int NV>
void winograd_product(const WinogradCall& c, const WinogradScratch& s, const float* input,
                      const float* weight, int64_t ahead, float* product, int64_t tiles) {
  for (int64_t channel = 0; channel < c.in_channels; channel += kWinogradChannels) {
    const int64_t left = c.in_channels - channel;
    const WinogradPanel panel{input + s.input.offset(0, channel),
                              s.input.block,
                              weight + channel * NV * Vec::kWidth,
                              left < kWinogradChannels ? left : kWinogradChannels,
                              product,
                              s.product_row,
                              channel > 0};
    winograd_blocks<NV>(panel, tiles, ahead);
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
