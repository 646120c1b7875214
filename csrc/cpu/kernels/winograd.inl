// Winograd convolution F(m x m, r x r), NHWC (Lavin and Gray 2015, arXiv:1509.09308). A block of tiles is
// transformed, multiplied by the transformed weights in n x n small matrix products, and transformed back
// while it is in the second-level cache. Vectors run over channels throughout.
#pragma once
#include "cpu/kernels/winograd_products.inl"
#include "cpu/kernels/winograd_raw.inl"

namespace {

template <int N, int M, bool kLine = false>
void winograd_tiles(const WinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                    int64_t panel_end) {
  constexpr int kPoints = kLine ? N : N * N;
  const WinogradScratch s(c, kPoints, panel_end - panel_begin);
  float* input = c.scratch;
  float* product = c.scratch + kPoints * s.input.point;
  const int64_t pixels = (tile_end - tile_begin) * (kLine ? M : M * M);
  const bool far_input = c.far_input || pixels * c.in_channels > kNearFloats;
  const bool far_output = pixels * c.channels > kNearFloats;
  for (int64_t begin = tile_begin; begin < tile_end; begin += c.block_tiles) {
    const int64_t tiles = tile_end - begin < c.block_tiles ? tile_end - begin : c.block_tiles;
    const TilePlace first(c, begin);
    TilePlace at = first;
    for (int64_t t = 0; t < tiles; ++t) {
      const TilePlace next = at.next(c);
      if (c.prologue.scale)
        winograd_input<N, M, kLine, true>(c, s.input, t, at, far_input ? &next : nullptr, input);
      else
        winograd_input<N, M, kLine, false>(c, s.input, t, at, far_input ? &next : nullptr, input);
      at = next;
    }
    // Raw weights go panel by panel, packed ones through all panels at once.
    const int64_t panels = c.raw ? 1 : panel_end - panel_begin;
    for (int64_t from = panel_begin; from < panel_end; from += panels) {
      if (kLine || !c.raw)
        winograd_products(c, s, kPoints, input, product, tiles, panel_begin, panel_end);
      else if constexpr (!kLine)
        raw_products<N, M>(c, s, input, product, tiles, from, panel_end, product + N * N * s.product_point);
      at = first;
      for (int64_t t = 0; t < tiles; ++t) {
        const TilePlace next = at.next(c);
        for (int64_t panel = from; panel < from + panels; ++panel)
          winograd_output<N, M, kLine>(c, s, t, at, far_output ? &next : nullptr,
                                       product + (panel - from) * s.product_panel, panel * s.product_row);
        at = next;
      }
    }
  }
}

void winograd_lines(const WinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                    int64_t panel_end) {
  switch (c.points * 16 + c.tile) {
    case 6 * 16 + 4:
      return winograd_tiles<6, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 6:
      return winograd_tiles<8, 6, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 4:
      return winograd_tiles<8, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 5:
      return winograd_tiles<9, 5, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 2:
      return winograd_tiles<8, 2, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 3:
      return winograd_tiles<9, 3, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 10 * 16 + 4:
      return winograd_tiles<10, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 10 * 16 + 2:
      return winograd_tiles<10, 2, true>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

void winograd(const WinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
              int64_t panel_end) {
  if (is_line(c)) return winograd_lines(c, tile_begin, tile_end, panel_begin, panel_end);
  switch (c.points * 16 + c.tile) {
    case 4 * 16 + 2:
      return winograd_tiles<4, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 5 * 16 + 3:
      return winograd_tiles<5, 3>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 6 * 16 + 4:
      return winograd_tiles<6, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 6:
      return winograd_tiles<8, 6>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 7:
      return winograd_tiles<9, 7>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 6 * 16 + 2:
      return winograd_tiles<6, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 4:
      return winograd_tiles<8, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 10 * 16 + 6:
      return winograd_tiles<10, 6>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

int64_t winograd_scratch(const WinogradCall& c, int64_t panels) {
  return WinogradScratch(c, static_cast<int>(is_line(c) ? c.points : c.points * c.points), panels).floats;
}

int64_t winograd_rows(int64_t panel_vectors) { return kWinogradRows[panel_vectors - 1]; }

}  // namespace
