// Gradients of weights on AMX tiles: see weight_gradient16.inl. A tile of input has 16 channels as rows and
// 32 pixels in each; a tap moves it along its rows, whatever the alignment.
#include "cpu/vec/amx.h"

namespace {

constexpr int64_t kPixelStep = kPairBlock;  // pixels of one multiplication

// MI tiles of input channels by MO of output channels, over `pixels` pixels from `from` on. Registers: sums
// first, then input, then gradient.
template <int MI, int MO>
void gradient_tiles(const PairGradientCall& c, int64_t in_tile, int64_t out_tile, int64_t tap, int64_t from,
                    int64_t pixels, bool first) {
  static_assert(MI <= 2 && MO <= 2);
  float* const s00 = sums_of(c, in_tile, out_tile, tap);
  float* const s10 = MI == 2 ? sums_of(c, in_tile + 1, out_tile, tap) : s00;
  float* const s01 = MO == 2 ? sums_of(c, in_tile, out_tile + 1, tap) : s00;
  float* const s11 = MI == 2 && MO == 2 ? sums_of(c, in_tile + 1, out_tile + 1, tap) : s00;
  if (first) {
    Tiles::zero<0>();
    if constexpr (MI == 2) Tiles::zero<1>();
    if constexpr (MO == 2) Tiles::zero<2>();
    if constexpr (MI == 2 && MO == 2) Tiles::zero<3>();
  } else {
    Tiles::load<0>(s00, kTileBytes);
    if constexpr (MI == 2) Tiles::load<1>(s10, kTileBytes);
    if constexpr (MO == 2) Tiles::load<2>(s01, kTileBytes);
    if constexpr (MI == 2 && MO == 2) Tiles::load<3>(s11, kTileBytes);
  }
  const int64_t stride = c.row_step * static_cast<int64_t>(sizeof(uint16_t));
  const uint16_t* a = rows_of(c, in_tile) + c.tap[tap] + from;
  const uint16_t* const a_end = a + pixels;
  const uint16_t* b = pairs_of(c, out_tile) + from * kGradientTile;
  for (; a < a_end; a += kPixelStep, b += kPixelStep * kGradientTile) {
    Tiles::load<6>(b, kTileBytes);
    Tiles::load<4>(a, stride);
    Tiles::multiply<0, 4, 6>();
    if constexpr (MI == 2) {
      Tiles::load<5>(a + kGradientTile * c.row_step, stride);
      Tiles::multiply<1, 5, 6>();
    }
    if constexpr (MO == 2) {
      Tiles::load<7>(b + kGradientTile * c.pixels, kTileBytes);
      Tiles::multiply<2, 4, 7>();
      if constexpr (MI == 2) Tiles::multiply<3, 5, 7>();
    }
  }
  Tiles::store<0>(s00, kTileBytes);
  if constexpr (MI == 2) Tiles::store<1>(s10, kTileBytes);
  if constexpr (MO == 2) Tiles::store<2>(s01, kTileBytes);
  if constexpr (MI == 2 && MO == 2) Tiles::store<3>(s11, kTileBytes);
}

// All taps, some hundred pixels at a time: what two tiles of channels have of them stays in the first-level
// cache from tap to tap.
template <int MI, int MO>
void gradient_block(const PairGradientCall& c, int64_t in_tile, int64_t out_tile) {
  const int64_t step = c.taps > 1 ? c.near_pixels : c.pixels;
  for (int64_t from = 0; from < c.pixels; from += step) {
    const int64_t pixels = c.pixels - from < step ? c.pixels - from : step;
    for (int64_t t = 0; t < c.taps; ++t)
      gradient_tiles<MI, MO>(c, in_tile, out_tile, t, from, pixels, c.first && from == 0);
  }
}

template <int MO>
void gradient_blocks(const PairGradientCall& c, int64_t out_tile) {
  int64_t i = 0;
  for (; i + 2 <= c.in_tiles; i += 2) gradient_block<2, MO>(c, i, out_tile);
  if (i < c.in_tiles) gradient_block<1, MO>(c, i, out_tile);
}

inline void amx_pair_gradient(const PairGradientCall& c) {
  int64_t o = 0;
  for (; o + 2 <= c.out_tiles; o += 2) gradient_blocks<2>(c, o);
  if (o < c.out_tiles) gradient_blocks<1>(c, o);
}

}  // namespace
