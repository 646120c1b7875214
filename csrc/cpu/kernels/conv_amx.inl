// Direct convolution on AMX tiles. The 16 rows of a tile are input pixels at one distance, loaded from where
// they lie, for 32 positions of the dot product at a time; a tile may reach over the end of an image row, and
// what it computes there is dropped. Where a stretch is no multiple of 32, or pixels do not lie so that tiles
// fill, the block's values are gathered first (as in conv16.inl), and tiles are loaded from there.
//
// Two tiles of pixels meet both halves of a panel; three meet the one half that a narrow last panel has.
#include "cpu/vec/amx.h"

namespace {

constexpr int64_t kDepthStep = kPairBlock;  // positions of one multiplication
constexpr int64_t kFewTilePixels = 8;       // fewer leave most rows of a tile empty: vectors take them

// Up to 16 pixels. A row without a pixel has no output.
struct PixelTile {
  const uint16_t* first;
  OutputPixel row[kTileRows];
};

struct TileRun {
  const PixelTile* tiles;
  int64_t count;
  int64_t step;  // between the rows of a tile
  const int64_t* tap;
  int64_t taps, length;
};

// How many tiles hold `count` pixels from where `walk` stands, built in `tiles`; 0 where some tile would read
// memory that is not the input's, or more than half of the rows would be empty.
inline int64_t straight_tiles(const Conv16Call& c, Pixel16Walk walk, int64_t count, PixelTile* tiles) {
  const int64_t step = c.stride_w * c.input.pixel, reach = c.tap[c.taps - 1] + c.length;
  const int64_t most = (2 * count + kTileRows - 1) / kTileRows + 1;
  int64_t built = 0;
  for (int64_t i = 0; i < count; ++built) {
    if (built == most) return 0;
    PixelTile& tile = tiles[built];
    for (OutputPixel& row : tile.row) row = {};
    tile.first = walk.here().input;
    int64_t last = 0;
    for (; i < count; ++i, walk.step()) {
      const int64_t offset = walk.here().input - tile.first;
      const int64_t row = offset == (last + 1) * step ? last + 1 : offset / step;
      if (row >= kTileRows || row * step != offset) break;
      tile.row[row] = walk.here();
      last = row;
    }
    // The empty rows behind the last pixel become rows in front of the first where memory ends.
    const int64_t excess = tile.first + (kTileRows - 1) * step + reach - c.beyond;
    if (excess <= 0) continue;
    const int64_t back = (excess + step - 1) / step;
    if (back > kTileRows - 1 - last || tile.first - c.readable < back * step) return 0;
    tile.first -= back * step;
    for (int64_t row = kTileRows - 1; row >= 0; --row)
      tile.row[row] = row >= back ? tile.row[row - back] : OutputPixel{};
  }
  return built;
}

// Sums of the largest block, in the first-level cache.
constexpr int64_t kBlockSums = 4 * kTileRows * kHalfPanel;

// MT tiles of pixels times NT halves of a panel. Registers: sums first, then pixels, then weights. sums: rows
// of NT halves, tile by tile.
template <int MT, int NT>
void multiply_tiles(const TileRun& run, const PixelTile* tiles, const uint16_t* weight, float* sums) {
  static_assert(MT * NT + MT + NT <= 8 && MT <= 3 && NT <= 2);
  constexpr int A = MT * NT, B = A + MT;
  Tiles::zero<0>();
  if constexpr (A > 1) Tiles::zero<1>();
  if constexpr (A > 2) Tiles::zero<2>();
  if constexpr (A > 3) Tiles::zero<3>();
  const int64_t stride = run.step * static_cast<int64_t>(sizeof(uint16_t));
  for (int64_t t = 0; t < run.taps; ++t)
    for (int64_t k = 0; k < run.length; k += kDepthStep, weight += NT * kHalfPanel * kDepthStep) {
      const int64_t at = run.tap[t] + k;
      Tiles::load<B>(weight, kTileBytes);
      Tiles::load<A>(tiles[0].first + at, stride);
      Tiles::multiply<0, A, B>();
      if constexpr (NT == 2) {
        Tiles::load<B + 1>(weight + kHalfPanel * kDepthStep, kTileBytes);
        Tiles::multiply<1, A, B + 1>();
      }
      if constexpr (MT >= 2) {
        Tiles::load<A + 1>(tiles[1].first + at, stride);
        Tiles::multiply<NT, A + 1, B>();
        if constexpr (NT == 2) Tiles::multiply<3, A + 1, B + 1>();
      }
      if constexpr (MT == 3) {
        Tiles::load<A + 2>(tiles[2].first + at, stride);
        Tiles::multiply<2, A + 2, B>();
      }
    }
  constexpr int64_t kRow = NT * kHalfPanel, kRowBytes = kRow * static_cast<int64_t>(sizeof(float));
  Tiles::store<0>(sums, kRowBytes);
  if constexpr (NT == 2) Tiles::store<1>(sums + kHalfPanel, kRowBytes);
  if constexpr (MT >= 2) Tiles::store<NT>(sums + kTileRows * kRow, kRowBytes);
  if constexpr (MT >= 2 && NT == 2) Tiles::store<3>(sums + kTileRows * kRow + kHalfPanel, kRowBytes);
  if constexpr (MT == 3) Tiles::store<2>(sums + 2 * kTileRows * kRow, kRowBytes);
}

template <int MT, int NT>
void finish_tiles(const Conv16Call& c, const PixelTile* tiles, const float* sums, int64_t channel) {
  for (int m = 0; m < MT; ++m)
    for (int r = 0; r < kTileRows; ++r, sums += NT * kHalfPanel) {
      const OutputPixel& pixel = tiles[m].row[r];
      if (!pixel.output) continue;
      for (int64_t j = 0; j < NT * kHalfPanel && channel + j < c.channels; j += Vec::kWidth)
        finish_vector(c, Vec::load(sums + j), pixel, channel + j, c.channels - channel - j);
    }
}

// All tiles of a run, MT at a time, in one panel. A block's sums go to memory behind the multiplications of
// the next one, which tiles do meanwhile.
template <int MT, int NT>
void tile_blocks(const Conv16Call& c, const TileRun& run, const uint16_t* weight, int64_t channel) {
  alignas(64) float sums[2][kBlockSums];
  const PixelTile* tiles = run.tiles;
  int64_t block = 0;
  for (; (block + 1) * MT <= run.count; ++block, tiles += MT) {
    multiply_tiles<MT, NT>(run, tiles, weight, sums[block % 2]);
    if (block > 0) finish_tiles<MT, NT>(c, tiles - MT, sums[(block + 1) % 2], channel);
  }
  if (block > 0) finish_tiles<MT, NT>(c, tiles - MT, sums[(block + 1) % 2], channel);
  if constexpr (MT > 1) {
    const int64_t left = run.count - block * MT;
    const TileRun rest{tiles, left, run.step, run.tap, run.taps, run.length};
    if (left > 0) tile_blocks<MT - 1, NT>(c, rest, weight, channel);
  }
}

// All tiles of a block in one panel.
inline void tile_panel(const Conv16Call& c, const TileRun& run, int64_t panel) {
  const int64_t channel = panel * kPanelChannels;
  const uint16_t* weight = c.weight + channel * padded_depth(c);
  c.channels - channel > kHalfPanel ? tile_blocks<2, 2>(c, run, weight, channel)
                                    : tile_blocks<3, 1>(c, run, weight, channel);
}

inline int64_t most_tiles(const Conv16Call& c) {
  const int64_t pixels = c.near_pixels > c.block_pixels ? c.near_pixels : c.block_pixels;
  return (2 * pixels + kTileRows - 1) / kTileRows + 1;
}
inline int64_t tile_pixels_of(const Conv16Call& c) {
  return (c.block_pixels + kTileRows - 1) / kTileRows * kTileRows;
}

template <class Dot>
int64_t amx_scratch(const Conv16Call& c) {
  const int64_t values = static_cast<int64_t>(sizeof(uint16_t)) * tile_pixels_of(c) * padded_depth(c);
  const int64_t own = values + most_tiles(c) * static_cast<int64_t>(sizeof(PixelTile));
  return own > gather_scratch<Dot>(c) ? own : gather_scratch<Dot>(c);
}

// Copies the values of `count` pixels side by side; rows of the last tile that have no pixel are zero.
template <class Dot>
int64_t gathered_tiles(const Conv16Call& c, Pixel16Walk walk, int64_t count, uint16_t* values,
                       PixelTile* tiles) {
  const int64_t depth = padded_depth(c), built = (count + kTileRows - 1) / kTileRows;
  for (int64_t t = 0, i = 0; t < built; ++t) {
    tiles[t].first = values + t * kTileRows * depth;
    for (int64_t r = 0; r < kTileRows; ++r, ++i) {
      uint16_t* to = values + i * depth;
      tiles[t].row[r] = i < count ? walk.here() : OutputPixel{};
      if (i >= count) {
        __builtin_memset(to, 0, static_cast<size_t>(depth) * sizeof(uint16_t));
        continue;
      }
      gather_pixel<Dot>(c, walk.here().input, to);
      walk.step();
    }
  }
  return built;
}

// Dot: products of pairs in vectors, for few pixels.
template <class Dot>
void amx_conv(const Conv16Call& c, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
              int64_t panel_end) {
  if (pixel_end - pixel_begin < kFewTilePixels)
    return gathered_conv<Dot>(c, pixel_begin, pixel_end, panel_begin, panel_end);
  static const int64_t kNoTap = 0;
  auto* values = static_cast<uint16_t*>(c.scratch);
  auto* tiles = reinterpret_cast<PixelTile*>(values + tile_pixels_of(c) * padded_depth(c));
  for (int64_t at = pixel_begin; at < pixel_end;) {
    const Pixel16Walk walk(c, at);
    const int64_t left = pixel_end - at;
    int64_t count = left < c.near_pixels ? left : c.near_pixels;
    TileRun run{tiles, 0, c.stride_w * c.input.pixel, c.tap, c.taps, c.length};
    if (c.length % kDepthStep == 0) run.count = straight_tiles(c, walk, count, tiles);
    if (run.count == 0) {
      count = left < c.block_pixels ? left : c.block_pixels;
      const int64_t depth = padded_depth(c);
      run = {tiles, gathered_tiles<Dot>(c, walk, count, values, tiles), depth, &kNoTap, 1, depth};
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) tile_panel(c, run, panel);
    at += count;
  }
}

}  // namespace
