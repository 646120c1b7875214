// Direct convolution on AMX tiles. The 16 rows of a tile are input pixels at one distance, loaded from where
// they lie, for 32 positions of the dot product at a time; a tile may reach over the end of an image row, and
// what it computes there is dropped. Where a stretch is no multiple of 32, or pixels do not lie so that tiles
// fill, or their values are normalised on the way in, the block's values are gathered first (as in
// conv16.inl), and tiles are loaded from there.
//
// Two tiles of pixels meet both halves of a panel; three meet the one half that a narrow last panel has.
//
// Dot products over many channels are cut into passes over some of them, so that those of a few rows of
// pixels stay in the first-level cache for all taps; sums wait in memory between passes.
#include "cpu/vec/amx.h"

namespace {

constexpr int64_t kDepthStep = kPairBlock;  // positions of one multiplication
constexpr int64_t kLineBytes = 64;
constexpr int64_t kFewTilePixels = 8;  // fewer leave most rows of a tile empty: vectors take them

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

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Positions [begin, end) of every tap.
struct DotPass {
  int64_t begin, end;
  bool first, last;
};

// Channels of a pass: rows of an image of more do not stay in the first-level cache from one tap to the next.
constexpr int64_t kPassChannels = 256;
// Tiles that go through all passes before the next ones begin: their sums stay near.
constexpr int64_t kPassTiles = 8;

// Calls body(pass) for all passes over a dot product.
template <class Body>
void for_passes(const TileRun& run, Body&& body) {
  const int64_t part = run.taps > 1 && run.length > kPassChannels ? kPassChannels : run.length;
  for (int64_t k = 0; k < run.length; k += part) {
    const int64_t end = k + part < run.length ? k + part : run.length;
    body(DotPass{k, end, k == 0, end == run.length});
  }
}

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

// Sums of a block in memory: rows of NT halves, tile by tile.
template <int MT, int NT>
struct BlockSums {
  static constexpr int64_t kRow = NT * kHalfPanel, kRowBytes = kRow * static_cast<int64_t>(sizeof(float));
  static constexpr int64_t kTile = kTileRows * kRow;
  static void zero() {
    Tiles::zero<0>();
    if constexpr (MT * NT > 1) Tiles::zero<1>();
    if constexpr (MT * NT > 2) Tiles::zero<2>();
    if constexpr (MT * NT > 3) Tiles::zero<3>();
  }
  static void load(const float* sums) {
    Tiles::load<0>(sums, kRowBytes);
    if constexpr (NT == 2) Tiles::load<1>(sums + kHalfPanel, kRowBytes);
    if constexpr (MT >= 2) Tiles::load<NT>(sums + kTile, kRowBytes);
    if constexpr (MT >= 2 && NT == 2) Tiles::load<3>(sums + kTile + kHalfPanel, kRowBytes);
    if constexpr (MT == 3) Tiles::load<2>(sums + 2 * kTile, kRowBytes);
  }
  static void store(float* sums) {
    Tiles::store<0>(sums, kRowBytes);
    if constexpr (NT == 2) Tiles::store<1>(sums + kHalfPanel, kRowBytes);
    if constexpr (MT >= 2) Tiles::store<NT>(sums + kTile, kRowBytes);
    if constexpr (MT >= 2 && NT == 2) Tiles::store<3>(sums + kTile + kHalfPanel, kRowBytes);
    if constexpr (MT == 3) Tiles::store<2>(sums + 2 * kTile, kRowBytes);
  }
};

// What stands between the sums of NT halves of a panel and memory.
template <int NT>
class PanelEnd {
 public:
  PanelEnd(const Conv16Call& c, int64_t channel)
      : c_(c),
        channel_(channel),
        plain_(channel + NT * kHalfPanel <= c.channels && in_registers(c.activation)),
        activation_(c.activation) {
    for (int j = 0; j < kVectors; ++j)
      shift_[j] = c.shift ? Vec::load(c.shift + channel + j * Vec::kWidth) : Vec::zero();
  }
  int64_t channel() const { return channel_; }
  bool adds() const { return c_.residual.data; }
  void finish(const float* sums, const OutputPixel& pixel) const {
    if (!pixel.output) return;
    if (!plain_) return finish_vectors(sums, pixel);
    Vec v[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      v[j] = Vec::load(sums + j * Vec::kWidth) + shift_[j];
      if (pixel.residual) v[j] = v[j] + Bf16::load(pixel.residual + channel_ + j * Vec::kWidth);
      v[j] = activation_.of(v[j]);
    }
    uint16_t* to = pixel.output + channel_;
    if constexpr (kVectors == 1) return Bf16::store_sum(v[0], to);
#pragma GCC unroll 4
    for (int j = 0; j + 1 < kVectors; j += 2) Bf16::store_two_sums(v[j], v[j + 1], to + j * Vec::kWidth);
  }

 private:
  void finish_vectors(const float* sums, const OutputPixel& pixel) const {
    for (int64_t j = 0; j < NT * kHalfPanel && channel_ + j < c_.channels; j += Vec::kWidth)
      finish_vector(c_, Vec::load(sums + j), pixel, channel_ + j, c_.channels - channel_ - j);
  }

  static constexpr int kVectors = NT * static_cast<int>(kHalfPanel / Vec::kWidth);
  const Conv16Call& c_;
  int64_t channel_;
  bool plain_;  // whole vectors, and an activation of few instructions
  ShortActivation activation_;
  Vec shift_[kVectors];
};

// A block whose sums are complete: its pixels are finished between the multiplications of the next one, which
// tiles do meanwhile.
template <int NT>
struct Pending {
  const PanelEnd<NT>* end;
  const PixelTile* tiles;
  const float* sums;
  int64_t row, rows;
  void some(int64_t count) {
    for (; count > 0 && row < rows; --count, ++row)
      end->finish(sums + row * NT * kHalfPanel, tiles[row / kTileRows].row[row % kTileRows]);
  }
};

// What will be added to the sums of a block, on its way while they are made.
inline void fetch_residuals(const PixelTile* tiles, int64_t count, int64_t channel) {
  for (int64_t t = 0; t < count; ++t)
    for (const OutputPixel& pixel : tiles[t].row)
      if (pixel.residual) __builtin_prefetch(pixel.residual + channel, 0, 3);
}

// The weights that the next panel begins with, on their way to the second-level cache meanwhile.
struct Ahead {
  const char *at, *end;
  int64_t lines;  // per step
  void some() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += kLineBytes) __builtin_prefetch(at, 0, 2);
  }
};

// MT tiles of pixels times NT halves of a panel, added to the sums in registers: those first, then pixels,
// then weights.
template <int MT, int NT>
void multiply_tiles(const TileRun& run, const DotPass& pass, const PixelTile* tiles, const uint16_t* panel,
                    Pending<NT>& pending, Ahead& ahead) {
  static_assert(MT * NT + MT + NT <= 8 && MT <= 3 && NT <= 2);
  constexpr int A = MT * NT, B = A + MT;
  const int64_t stride = run.step * static_cast<int64_t>(sizeof(uint16_t));
  const int64_t steps = run.taps * divide_up(pass.end - pass.begin, kDepthStep);
  const int64_t rows_a_step = divide_up(pending.rows, steps);
  for (int64_t t = 0; t < run.taps; ++t) {
    const uint16_t* weight = panel + (t * run.length + pass.begin) * NT * kHalfPanel;
    for (int64_t k = pass.begin; k < pass.end; k += kDepthStep, weight += NT * kHalfPanel * kDepthStep) {
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
      pending.some(rows_a_step);
      ahead.some();
    }
  }
}

// One pass of all tiles of a run, MT at a time, in one panel. partial: sums between passes, tile by tile.
// A function of its own, whose instructions a test reads.
template <int MT, int NT>
[[gnu::noinline]] void tile_pass(const TileRun& run, const DotPass& pass, const uint16_t* weight,
                                 const PanelEnd<NT>& end, float* partial, Ahead& ahead) {
  using Sums = BlockSums<MT, NT>;
  alignas(64) float sums[kBlockSums];
  Pending<NT> pending{&end, nullptr, nullptr, 0, 0};
  const PixelTile* tiles = run.tiles;
  int64_t block = 0;
  for (; (block + 1) * MT <= run.count; ++block, tiles += MT, partial += MT * Sums::kTile) {
    pass.first ? Sums::zero() : Sums::load(partial);
    if (pass.last && end.adds()) fetch_residuals(tiles, MT, end.channel());
    multiply_tiles<MT, NT>(run, pass, tiles, weight, pending, ahead);
    Sums::store(pass.last ? sums : partial);
    if (pass.last) pending = {&end, tiles, sums, 0, MT * kTileRows};
  }
  pending.some(pending.rows);
  if constexpr (MT > 1) {
    TileRun rest = run;
    rest.tiles = tiles;
    rest.count = run.count - block * MT;
    if (rest.count > 0) tile_pass<MT - 1, NT>(rest, pass, weight, end, partial, ahead);
  }
}

// Steps of all blocks of a run.
template <int MT>
int64_t steps_of(const TileRun& run) {
  return divide_up(run.count, MT) * run.taps * divide_up(run.length, kDepthStep);
}

template <int MT, int NT>
void tile_passes(const Conv16Call& c, const TileRun& all, int64_t channel, float* partial, Ahead ahead) {
  ahead.lines = divide_up(ahead.end - ahead.at, kLineBytes * steps_of<MT>(all));
  const uint16_t* weight = c.weight + channel * padded_depth(c);
  const PanelEnd<NT> end(c, channel);
  for (int64_t i = 0; i < all.count; i += kPassTiles) {
    TileRun run = all;
    run.tiles += i;
    run.count = all.count - i < kPassTiles ? all.count - i : kPassTiles;
    for_passes(run, [&](const DotPass& pass) { tile_pass<MT, NT>(run, pass, weight, end, partial, ahead); });
  }
}

// Weights that stay in the second-level cache as they are.
constexpr int64_t kNearWeightBytes = 512 * 1024;

// All tiles of a block in one panel; `next` follows it.
inline void tile_panel(const Conv16Call& c, const TileRun& run, int64_t panel, int64_t next, float* partial) {
  const int64_t channel = panel * kPanelChannels, next_channel = next * kPanelChannels;
  const int64_t left = c.channels - next_channel;
  const int64_t stored = left > kHalfPanel ? kPanelChannels : kHalfPanel;
  const auto* weight = reinterpret_cast<const char*>(c.weight + next_channel * padded_depth(c));
  const int64_t bytes = stored * padded_depth(c) * static_cast<int64_t>(sizeof(uint16_t));
  const bool near = c.channels * padded_depth(c) * static_cast<int64_t>(sizeof(uint16_t)) <= kNearWeightBytes;
  const Ahead ahead{weight, weight + (near || next == panel ? 0 : bytes), 0};
  c.channels - channel > kHalfPanel ? tile_passes<2, 2>(c, run, channel, partial, ahead)
                                    : tile_passes<3, 1>(c, run, channel, partial, ahead);
}

constexpr int64_t kPartialBytes =
    kPassTiles * kTileRows * kPanelChannels * static_cast<int64_t>(sizeof(float));

inline int64_t most_tiles(const Conv16Call& c) {
  const int64_t pixels = c.near_pixels > c.block_pixels ? c.near_pixels : c.block_pixels;
  return (2 * pixels + kTileRows - 1) / kTileRows + 1;
}
inline int64_t tile_pixels_of(const Conv16Call& c) {
  return (c.block_pixels + kTileRows - 1) / kTileRows * kTileRows;
}

template <class Dot>
int64_t amx_scratch(const Conv16Call& c) {
  const int64_t values = static_cast<int64_t>(sizeof(uint16_t)) * tile_pixels_of(c) * gathered_step(c);
  const int64_t own = kPartialBytes + values + most_tiles(c) * static_cast<int64_t>(sizeof(PixelTile));
  return own > gather_scratch<Dot>(c) ? own : gather_scratch<Dot>(c);
}

// Copies the values of `count` pixels, from pixel number `at` on, side by side; rows of the last tile that
// have no pixel are zero.
template <class Dot>
int64_t gathered_tiles(const Conv16Call& c, Pixel16Walk walk, int64_t at, int64_t count, uint16_t* values,
                       PixelTile* tiles) {
  const int64_t depth = padded_depth(c), step = gathered_step(c), built = divide_up(count, kTileRows);
  for (int64_t t = 0; t < built; ++t, values += kTileRows * step) {
    const int64_t left = count - t * kTileRows, rows = left < kTileRows ? left : kTileRows;
    tiles[t].first = values;
    walk.take(rows, tiles[t].row);
    gather_pixels<Dot>(c, tiles[t].row, at + t * kTileRows, rows, values);
    for (int64_t r = rows; r < kTileRows; ++r) {
      tiles[t].row[r] = OutputPixel{};
      __builtin_memset(values + r * step, 0, static_cast<size_t>(depth) * sizeof(uint16_t));
    }
  }
  return built;
}

// Pixels of the next block out of `left` read where they lie. All weights are read again for every block:
// none is much smaller than the others.
inline int64_t near_count(const Conv16Call& c, int64_t left) {
  const int64_t blocks = divide_up(left, c.near_pixels), grain = 2 * kTileRows;
  const int64_t even = divide_up(divide_up(left, blocks), grain) * grain;
  return even < left ? even : left;
}

// Dot: products of pairs in vectors, for few pixels.
template <class Dot>
void amx_conv(const Conv16Call& c, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
              int64_t panel_end) {
  if (pixel_end - pixel_begin < kFewTilePixels)
    return gathered_conv<Dot>(c, pixel_begin, pixel_end, panel_begin, panel_end);
  static const int64_t kNoTap = 0;
  auto* partial = static_cast<float*>(c.scratch);
  auto* values = reinterpret_cast<uint16_t*>(static_cast<char*>(c.scratch) + kPartialBytes);
  auto* tiles = reinterpret_cast<PixelTile*>(values + tile_pixels_of(c) * gathered_step(c));
  for (int64_t at = pixel_begin; at < pixel_end;) {
    const Pixel16Walk walk(c, at);
    const int64_t left = pixel_end - at;
    int64_t count = near_count(c, left);
    TileRun run{tiles, 0, c.stride_w * c.input.pixel, c.tile_tap, c.tile_taps, c.tile_length};
    if (c.tile_length % kDepthStep == 0 && !c.in_scale) run.count = straight_tiles(c, walk, count, tiles);
    if (run.count == 0) {
      count = left < c.block_pixels ? left : c.block_pixels;
      const int64_t built = gathered_tiles<Dot>(c, walk, at, count, values, tiles);
      run = {tiles, built, gathered_step(c), &kNoTap, 1, padded_depth(c)};
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel)
      tile_panel(c, run, panel, panel + 1 < panel_end ? panel + 1 : panel_begin, partial);
    at += count;
  }
}

}  // namespace
