// First layers (cpu/first_winograd.h) by products of whole numbers (cpu/fixed_winograd.h). The lanes of a
// vector are tiles on the way there, whose pairs of numbers are spread by the products, and output channels
// on the way back. All points of a column share a scale for a tile.
#pragma once
#include "cpu/first_winograd.h"
#include "cpu/kernels/winograd_fixed_products.inl"
#include "cpu/kernels/winograd_places.inl"

namespace {

// Values of a pixel, `lanes` of them where those are fewer than a vector holds.
inline Vec load_pixel(const uint16_t* p, int64_t lanes) {
  return lanes >= Vec::kWidth ? Bf16::load(p) : Bf16::load_first(p, lanes);
}
inline Vec load_pixel(const float* p, int64_t lanes) {
  return lanes >= Vec::kWidth ? Vec::load(p) : Vec::load_first(p, lanes);
}
inline void store_pixel(Vec x, uint16_t* p, int64_t lanes) {
  lanes >= Vec::kWidth ? Bf16::store_sum(x, p) : Bf16::store_first(x, p, lanes);
}

struct First : FirstWinograd {
  static constexpr int kTiles = Vec::kWidth;  // of a block
  static constexpr int kBlock = 4;            // of them multiplied and stored at once
};

// Where the parts of a block lie in scratch memory. Numbers, in pairs: column of points, pair, row of points,
// tile. Scales: column, tile. Rows: row of pixels, column of points, whether pixels at odd columns,
// channel, tile. Back: tile, row of pixels, column of points, output channel.
struct FirstScratch {
  int64_t scales, rows, row, back, floats;
  explicit FirstScratch(int channels) {
    constexpr int w = Vec::kWidth;
    scales = static_cast<int64_t>(First::all_pairs(channels)) * First::kPoints * w;
    rows = scales + static_cast<int64_t>(First::kPoints) * w;
    row = static_cast<int64_t>(2) * channels * First::kPoints * w;
    back = rows + First::kPixels * row;
    floats = back + static_cast<int64_t>(First::kBlock) * First::kTile * First::kPoints * w;
  }
};

// Four pairs of values of each tile, turned round: to[k] has those at place k.
inline void turn_pairs(const uint16_t* const* from, int64_t place, float* to) {
  __m512i t[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto quarter = [&](int q) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[4 * q + i] + place));
    };
    t[i] = _mm512_inserti32x4(_mm512_castsi128_si512(quarter(0)), quarter(1), 1);
    t[i] = _mm512_inserti32x4(_mm512_inserti32x4(t[i], quarter(2), 2), quarter(3), 3);
  }
  const __m512i low = _mm512_unpacklo_epi32(t[0], t[1]), low_next = _mm512_unpacklo_epi32(t[2], t[3]);
  const __m512i high = _mm512_unpackhi_epi32(t[0], t[1]), high_next = _mm512_unpackhi_epi32(t[2], t[3]);
  const __m512i pairs[4] = {_mm512_unpacklo_epi64(low, low_next), _mm512_unpackhi_epi64(low, low_next),
                            _mm512_unpacklo_epi64(high, high_next), _mm512_unpackhi_epi64(high, high_next)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + 2 * i * Vec::kWidth, _mm512_slli_epi32(pairs[i], 16));
    _mm512_storeu_si512(to + (2 * i + 1) * Vec::kWidth,
                        _mm512_and_si512(pairs[i], _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
}

// The transform from one side, of 13 values `step` apart: 7 points of those at even places, and 6 of the
// others.
inline void first_transform(const float* in, int64_t step, float* even, float* odd, int64_t out_step) {
  constexpr int n = First::kPoints;
  Vec d[n], v[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) d[i] = Vec::load(in + 2 * i * step);
  transform_input<n>(d, 1, v, 1);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) v[i].store(even + i * out_step);
#pragma GCC unroll 8
  for (int i = 0; i + 1 < n; ++i) d[i] = Vec::load(in + (2 * i + 1) * step);
  d[n - 1] = Vec::zero();
  transform_input<n>(d, 1, v, 1);
#pragma GCC unroll 8
  for (int i = 0; i + 1 < n; ++i) v[i].store(odd + i * out_step);
}

// The pixels of a block of tiles: rows that lie within the image are read where they are, others are copied
// between zeros.
template <int C>
struct FirstPixels {
  static constexpr int kValues = First::kPixels * C, kRead = (kValues + 7) / 8 * 8;
  const uint16_t* row[First::kPixels][First::kTiles];
  __mmask16 inside[First::kPixels][First::kPixels] = {};  // tiles whose pixel lies within the image
  alignas(64) uint16_t copied[First::kPixels][First::kTiles][kRead];

  FirstPixels(const FixedWinogradCall& c, const TilePlace* places) {
    for (int t = 0; t < First::kTiles; ++t) {
      const TilePlace& at = places[t];
      const uint16_t* from = read_from(c.input, at, c.stride) - c.top * c.input.row - c.left * c.input.pixel;
      const Inside rows(at.y * c.stride - c.top, c.in_height), columns(at.x * c.stride - c.left, c.in_width);
      const bool whole = c.input.pixel == C && columns.holds_all((kRead + C - 1) / C);
      for (int y = 0; y < First::kPixels; ++y, from += c.input.row)
        row[y][t] = whole && rows.holds(y) ? from : copy(c, from, rows.holds(y), columns, copied[y][t]);
      if (c.in_scale) mark(rows, columns, t);
    }
  }

 private:
  static const uint16_t* copy(const FixedWinogradCall& c, const uint16_t* from, bool inside,
                              const Inside& columns, uint16_t* to) {
    for (int i = 0; i < kRead; ++i)
      to[i] = inside && columns.holds(i / C) ? from[i / C * c.input.pixel + i % C] : 0;
    return to;
  }
  void mark(const Inside& rows, const Inside& columns, int tile) {
    for (int y = 0; y < First::kPixels; ++y)
      for (int x = 0; x < First::kPixels; ++x)
        if (rows.holds(y) && columns.holds(x)) inside[y][x] |= static_cast<__mmask16>(1 << tile);
  }
};

// The norm and activation on the way in; padding stays zero.
template <int C>
void first_affine(const FixedWinogradCall& c, const __mmask16* inside, float* values) {
  for (int i = 0; i < FirstPixels<C>::kValues; ++i, values += Vec::kWidth) {
    const Vec scale = Vec::set1(c.in_scale[i % C]), shift = Vec::set1(c.in_shift[i % C]);
    const Vec x = apply(c.in_activation, Vec::fma(Vec::load(values), scale, shift));
    _mm512_storeu_ps(values, _mm512_maskz_mov_ps(inside[i / C], x.v));
  }
}

// All rows of pixels, transformed from one side.
template <int C>
void first_rows(const FixedWinogradCall& c, const FirstScratch& s, const FirstPixels<C>& pixels) {
  constexpr int w = Vec::kWidth;
  alignas(64) float values[FirstPixels<C>::kRead * w];
  for (int y = 0; y < First::kPixels; ++y) {
#pragma GCC unroll 8
    for (int i = 0; i < FirstPixels<C>::kRead; i += 8) turn_pairs(pixels.row[y], i, values + i * w);
    if (c.in_scale) first_affine<C>(c, pixels.inside[y], values);
    float* to = c.scratch + s.rows + y * s.row;
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i)
      first_transform(values + i * w, C * w, to + i * w, to + (C + i) * w, 2 * C * w);
  }
}

template <int kChannels, int Y = 0>
inline __m512i first_largest(const float* stage, __m512i most) {
  if constexpr (Y == First::kPoints) {
    return most;
  } else {
    __m512i row = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < kChannels; ++i)
      row = Fixed::larger(row, Fixed::magnitude(Vec::load(stage + (Y * kChannels + i) * Vec::kWidth)));
    const Vec balanced = Vec{_mm512_castsi512_ps(row)} * Vec::set1(First::balance(Y));
    return first_largest<kChannels, Y + 1>(stage, Fixed::larger(most, Fixed::magnitude(balanced)));
  }
}

template <int kChannels, int Y = 0>
inline void first_round(const float* stage, Vec to_fixed, int16_t* numbers) {
  if constexpr (Y < First::kPoints) {
    constexpr int w = Vec::kWidth;
    const Vec scale = to_fixed * Vec::set1(First::balance(Y)),
              above = Vec::set1(12582912.0f);  // see Fixed::store_two
#pragma GCC unroll 8
    for (int i = 0; i < kChannels / 2; ++i) {
      const float* from = stage + (Y * kChannels + 2 * i) * w;
      const __m512i low = _mm512_castps_si512(Vec::fma(Vec::load(from), scale, above).v);
      const __m512i high = _mm512_castps_si512(Vec::fma(Vec::load(from + w), scale, above).v);
      _mm512_storeu_si512(numbers + (i * First::kPoints + Y) * 2 * w,
                          _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16)));
    }
    first_round<kChannels, Y + 1>(stage, to_fixed, numbers);
  }
}

// A column of points: transformed from the other side and scaled together.
template <int C, int kColumns>
void first_column(const FixedWinogradCall& c, const FirstScratch& s, int x) {
  constexpr int w = Vec::kWidth, n = First::kPoints;
  alignas(64) float stage[n * 2 * kColumns * w];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) {
    Vec::zero().store(stage + ((2 * n - 1) * kColumns + i) * w);
    first_transform(c.scratch + s.rows + (x * 2 * C + i) * w, s.row, stage + i * w,
                    stage + (kColumns + i) * w, 2 * kColumns * w);
  }
  Vec to_fixed, back;
  Fixed::scales(first_largest<2 * kColumns>(stage, _mm512_setzero_si512()), static_cast<float>(kFixedLimit),
                to_fixed, back);
  (back * Vec::set1(First::balance(x))).store(c.scratch + s.scales + x * w);
  first_round<2 * kColumns>(
      stage, to_fixed,
      reinterpret_cast<int16_t*>(c.scratch) + static_cast<int64_t>(First::pairs_before(C, x)) * n * 2 * w);
}

// Products at a column of points of kBlock tiles and a vector of output channels, transformed back from one
// side: to back[tile][row][x].
inline void first_products(int pairs, const int16_t* numbers, const float* scale, const int16_t* weight,
                           float* back) {
  constexpr int w = Vec::kWidth, n = First::kPoints, m = First::kTile, kBlock = First::kBlock;
  __m512i acc[n][kBlock];
#pragma GCC unroll 8
  for (int y = 0; y < n; ++y)
#pragma GCC unroll 4
    for (int t = 0; t < kBlock; ++t) acc[y][t] = _mm512_setzero_si512();
  for (int i = 0; i < pairs; ++i, numbers += n * 2 * w, weight += n * 2 * w) {
#pragma GCC unroll 8
    for (int y = 0; y < n; ++y) {
      const __m512i b = Fixed::load(weight + y * 2 * w);
#pragma GCC unroll 4
      for (int t = 0; t < kBlock; ++t) Fixed::add_spread(acc[y][t], numbers + y * 2 * w + 2 * t, b);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kBlock; ++t) {
    Vec v[n], r[m];
#pragma GCC unroll 8
    for (int y = 0; y < n; ++y) v[y] = Fixed::value(acc[y][t]);
    transform_output<n, m>(v, 1, r, 1);
    const Vec of_tile = Vec::set1(scale[t]);
#pragma GCC unroll 4
    for (int y = 0; y < m; ++y) (r[y] * of_tile).store(back + (t * m + y) * n * w);
  }
}

// What a vector of output channels ends with.
struct FirstEnd {
  int64_t channel, lanes;
  Vec scale, shift;
  FirstEnd(const FixedWinogradCall& c, int64_t vector)
      : channel(vector * Vec::kWidth),
        lanes(c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth),
        scale(Vec::load(c.weight_scale + channel)),
        shift(c.shift ? Vec::load(c.shift + channel) : Vec::zero()) {}
};

template <bool kWhole>
inline void first_store(const FixedWinogradCall& c, const float* back, const TilePlace& at,
                        const FirstEnd& end) {
  constexpr int w = Vec::kWidth, n = First::kPoints, m = First::kTile;
  const int64_t rows = kWhole || c.height - at.y >= m ? m : c.height - at.y;
  const int64_t columns = kWhole || c.width - at.x >= m ? m : c.width - at.x;
  uint16_t* to = at_place(c.output, at) + end.channel;
  const uint16_t* added = !kWhole && c.residual.data ? at_place(c.residual, at) + end.channel : nullptr;
#pragma GCC unroll 1
  for (int64_t y = 0; y < rows; ++y, back += n * w, to += c.output.row) {
    Vec t[n], v[m];
#pragma GCC unroll 8
    for (int x = 0; x < n; ++x) t[x] = Vec::load(back + x * w);
    transform_output<n, m>(t, 1, v, 1);
#pragma GCC unroll 4
    for (int x = 0; x < m; ++x) {
      if (!kWhole && x >= columns) break;
      Vec r = Vec::fma(v[x], end.scale, end.shift);
      if (added) r = r + load_pixel(added + y * c.residual.row + x * c.residual.pixel, end.lanes);
      store_pixel(apply_sum(c.activation, r), to + x * c.output.pixel, kWhole ? w : end.lanes);
    }
  }
}

// A vector of output channels of a block.
template <int C>
void first_vector(const FixedWinogradCall& c, const FirstScratch& s, const TilePlace* places, int tiles,
                  int64_t vector) {
  constexpr int w = Vec::kWidth, n = First::kPoints;
  const auto* numbers = reinterpret_cast<const int16_t*>(c.scratch);
  const int16_t* weight = c.weight + vector * First::all_pairs(C) * n * 2 * w;
  const FirstEnd end(c, vector);
  for (int first = 0; first < tiles; first += First::kBlock) {
    const int last = first + First::kBlock < tiles ? first + First::kBlock : tiles;
    for (int x = 0; x < n; ++x) {
      const int64_t before = static_cast<int64_t>(First::pairs_before(C, x)) * n * 2 * w;
      first_products(First::pairs(C, x), numbers + before + 2 * first, c.scratch + s.scales + x * w + first,
                     weight + before, c.scratch + s.back + x * w);
    }
    for (int t = first; t < last; ++t) {
      const TilePlace& at = places[t];
      const float* back = c.scratch + s.back + (t - first) * First::kTile * n * w;
      const bool whole = at.y + First::kTile <= c.height && at.x + First::kTile <= c.width &&
                         end.lanes == w && !c.residual.data;
      whole ? first_store<true>(c, back, at, end) : first_store<false>(c, back, at, end);
    }
  }
}

// Of a block; the last one stands for those that are not there.
struct FirstPlaces {
  TilePlace at[First::kTiles];
  FirstPlaces(const FixedWinogradCall& c, int64_t begin, int tiles) {
    at[0] = TilePlace(c, begin);
    for (int t = 1; t < First::kTiles; ++t) at[t] = t < tiles ? at[t - 1].next(c) : at[t - 1];
  }
};

template <int C>
void first_tiles(const FixedWinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                 int64_t panel_end) {
  const FirstScratch s(C);
  const int64_t vectors = (c.channels + Vec::kWidth - 1) / Vec::kWidth;
  const int64_t last = panel_end * c.panel_vectors < vectors ? panel_end * c.panel_vectors : vectors;
  for (int64_t begin = tile_begin; begin < tile_end; begin += First::kTiles) {
    const int tiles = static_cast<int>(tile_end - begin < First::kTiles ? tile_end - begin : First::kTiles);
    const FirstPlaces places(c, begin, tiles);
    first_rows<C>(c, s, FirstPixels<C>(c, places.at));
    for (int x = 0; x + 1 < First::kPoints; ++x) first_column<C, 2 * C>(c, s, x);
    first_column<C, C>(c, s, First::kPoints - 1);
    for (int64_t vector = panel_begin * c.panel_vectors; vector < last; ++vector)
      first_vector<C>(c, s, places.at, tiles, vector);
  }
}

inline bool is_first_layer(const FixedWinogradCall& c) {
  return c.points == First::kPoints && c.tile == First::kTile && c.stride == 2;
}

void fixed_first(const FixedWinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                 int64_t panel_end) {
  switch (c.in_channels) {
    case 1:
      return first_tiles<1>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 2:
      return first_tiles<2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 3:
      return first_tiles<3>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 4:
      return first_tiles<4>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

}  // namespace
