// The kernels behind cpu/fixed_winograd.h. A block of tiles is transformed and scaled to whole numbers,
// multiplied point by point, and transformed back, while it is in the second-level cache.
#pragma once
#include "cpu/kernels/winograd_first.inl"
#include "cpu/kernels/winograd_fixed_products.inl"
#include "cpu/kernels/winograd_fixed_weights.inl"
#include "cpu/kernels/winograd_places.inl"

namespace {

// Pixels of more values come from far memory: those of the next tile are asked for while one is worked on.
constexpr int64_t kResidentPixels = 1 << 17;

// Pixels of some rows and columns, `channels` values each.
template <int kWrites>
inline void fetch_tile(const uint16_t* p, const View16& v, int rows, int column_begin, int column_end,
                       int64_t channels) {
  constexpr int64_t kLine = 32;
  for (int y = 0; y < rows; ++y)
    for (int x = column_begin; x < column_end; ++x)
      for (int64_t i = 0; i < channels; i += kLine)
        __builtin_prefetch(p + y * v.row + x * v.pixel + i, kWrites, 3);
}

// One vector of channels of a tile, transformed, to to[point * kFixedChunk].
template <class Side, int N, bool kLine, bool kAffine, bool kWhole>
void fixed_transform(const FixedWinogradCall& c, const uint16_t* from, int64_t channel, const Inside& rows,
                     const Inside& columns, float* to) {
  const int64_t lanes = c.in_channels - channel;
  const Vec scale = kAffine ? load_pixel(c.in_scale + channel, lanes) : Vec::zero();
  const Vec shift = kAffine ? load_pixel(c.in_shift + channel, lanes) : Vec::zero();
  constexpr int kRows = kLine ? 1 : N;
  Vec t[kRows * N];
#pragma GCC unroll 16
  for (int y = 0; y < kRows; ++y) {
    Vec d[N];
    const uint16_t* p = from + y * c.input.row + channel;
    const bool inside = kWhole || rows.holds(y);
#pragma GCC unroll 16
    for (int x = 0; x < N; ++x, p += c.input.pixel) {
      d[x] = Vec::zero();
      if (!kWhole && !(inside && columns.holds(x))) continue;
      d[x] = load_pixel(p, lanes);
      if constexpr (kAffine) d[x] = apply(c.in_activation, Vec::fma(d[x], scale, shift));
    }
    Side::transform(d, 1, t + y * N, 1);
  }
#pragma GCC unroll 16
  for (int x = 0; x < N; ++x) {
    if constexpr (kLine) {
      t[x].store(to + x * kFixedChunk);
    } else {
      Vec v[N];
      Side::transform(t + x, N, v, 1);
#pragma GCC unroll 16
      for (int y = 0; y < N; ++y) v[y].store(to + (y * N + x) * kFixedChunk);
    }
  }
}

// Scales the transformed values of a chunk, kVectors at every point.
template <int kPoints, int kVectors>
void fixed_round_vectors(const float* stage, int16_t* to, int64_t point_step, float* scales) {
  alignas(64) float to_fixed[16];
#pragma GCC unroll 1
  for (int first = 0; first < kPoints; first += 16) {
    const int count = kPoints - first < 16 ? kPoints - first : 16;
    __m512i most[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      most[i] = _mm512_setzero_si512();
      if (i >= count) continue;
      const float* p = stage + (first + i) * kFixedChunk;
      most[i] = Fixed::magnitude(Vec::load(p));
#pragma GCC unroll 4
      for (int v = 1; v < kVectors; ++v)
        most[i] = Fixed::larger(most[i], Fixed::magnitude(Vec::load(p + v * Vec::kWidth)));
    }
    Vec scale, back;
    Fixed::scales(Fixed::largest_lanes(most), static_cast<float>(kFixedLimit), scale, back);
    scale.store(to_fixed);
    back.store(scales + first);
    for (int i = 0; i < count; ++i) {
      const float* p = stage + (first + i) * kFixedChunk;
      int16_t* out = to + (first + i) * point_step;
      const Vec s = Vec::set1(to_fixed[i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v += 2)
        Fixed::store_two(Vec::load(p + v * Vec::kWidth),
                         v + 1 < kVectors ? Vec::load(p + (v + 1) * Vec::kWidth) : Vec::zero(), s,
                         out + v * Vec::kWidth);
    }
  }
}

template <int kPoints, int kVectors = static_cast<int>(kFixedChunk / Vec::kWidth)>
void fixed_round(int vectors, const float* stage, int16_t* to, int64_t point_step, float* scales) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) return fixed_round<kPoints, kVectors - 1>(vectors, stage, to, point_step, scales);
  }
  fixed_round_vectors<kPoints, kVectors>(stage, to, point_step, scales);
}

// next: the tile whose pixels are asked for meanwhile, or null. Its first columns lie in this one, mostly.
template <class Side, int N, bool kLine, bool kAffine>
void fixed_input(const FixedWinogradCall& c, const FixedScratch& s, int64_t tile, const TilePlace& at,
                 const TilePlace* next) {
  const FixedChunks chunks(c.in_channels);
  const int64_t corner = c.top * c.input.row + c.left * c.input.pixel;
  const auto* from = read_from(c.input, at, c.stride) - corner;
  const int known = static_cast<int>(c.points - c.tile * c.stride);
  const Inside rows(at.y * c.stride - c.top, c.in_height), columns(at.x * c.stride - c.left, c.in_width);
  const bool whole = rows.holds_all(kLine ? 1 : N) && columns.holds_all(N);
  float* stage = c.scratch + s.stage;
  for (int64_t k = 0; k < chunks.count; ++k) {
    const int64_t begin = k * chunks.length;
    const int64_t left = c.in_channels - begin, used = left < chunks.length ? left : chunks.length;
    const int vectors = static_cast<int>((used + Vec::kWidth - 1) / Vec::kWidth);
    if (next)
      fetch_tile<0>(read_from(c.input, *next, c.stride) - corner + begin, c.input, kLine ? 1 : N, known, N,
                    used);
    for (int v = 0; v < vectors; ++v) {
      const int64_t channel = begin + v * Vec::kWidth;
      if (whole)
        fixed_transform<Side, N, kLine, kAffine, true>(c, from, channel, rows, columns,
                                                       stage + v * Vec::kWidth);
      else
        fixed_transform<Side, N, kLine, kAffine, false>(c, from, channel, rows, columns,
                                                        stage + v * Vec::kWidth);
    }
    fixed_round<kLine ? N : N * N>(vectors, stage,
                                   reinterpret_cast<int16_t*>(c.scratch) + k * s.chunk + tile * kFixedChunk,
                                   s.point, c.scratch + s.scales + k * s.scale_chunk + tile * s.scale_tile);
  }
}

template <class Side, int N, int M, bool kLine>
void fixed_output(const FixedWinogradCall& c, const FixedScratch& s, int64_t tile, const TilePlace& at,
                  const TilePlace* next, const float* product, int64_t panel_channel) {
  constexpr int kRows = kLine ? 1 : M;
  const int64_t rows = c.height - at.y < kRows ? c.height - at.y : kRows;
  const int64_t columns = c.width - at.x < M ? c.width - at.x : M;
  const int64_t end = c.channels - panel_channel < s.product_row ? c.channels - panel_channel : s.product_row;
  const int64_t padded = (c.channels + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;
  auto* const to = at_place(c.output, at) + panel_channel;
  const auto* const added = c.residual.data ? at_place(c.residual, at) + panel_channel : nullptr;
  if (next) {
    fetch_tile<1>(at_place(c.output, *next) + panel_channel, c.output, kRows, 0, M, end);
    if (added) fetch_tile<0>(at_place(c.residual, *next) + panel_channel, c.residual, kRows, 0, M, end);
  }
  for (int64_t channel = 0; channel < end; channel += Vec::kWidth) {
    const int64_t lanes = end - channel < Vec::kWidth ? end - channel : Vec::kWidth;
    const float* from = product + tile * s.product_row + channel;
    const float* scale = c.weight_scale + panel_channel + channel;
    const auto product_at = [&](int y, int x) {
      const int kernel = Side::kernel_of(y) * Side::kKernels + Side::kernel_of(x);
      return Vec::load(from + (y * N + x) * s.product_point) * Vec::load(scale + kernel * padded);
    };
    Vec t[kRows * N];
#pragma GCC unroll 16
    for (int x = 0; x < N; ++x) {
      if constexpr (kLine) {
        t[x] = product_at(0, x);
      } else {
        Vec m[N];
#pragma GCC unroll 16
        for (int y = 0; y < N; ++y) m[y] = product_at(y, x);
        Side::transform_back(m, 1, t + x, N);
      }
    }
    const Vec shift = c.shift ? Vec::load(c.shift + panel_channel + channel) : Vec::zero();
#pragma GCC unroll 16
    for (int y = 0; y < kRows; ++y) {
      if (y >= rows) break;
      Vec v[M];
      Side::transform_back(t + y * N, 1, v, 1);
      auto* out = to + y * c.output.row + channel;
      const auto* residual = added ? added + y * c.residual.row + channel : nullptr;
#pragma GCC unroll 16
      for (int x = 0; x < M; ++x) {
        if (x >= columns) break;
        Vec r = v[x] + shift;
        if (residual) r = r + load_pixel(residual + x * c.residual.pixel, lanes);
        store_pixel(apply_sum(c.activation, r), out + x * c.output.pixel, lanes);
      }
    }
  }
}

template <int N, int M, bool kLine = false, int S = 1>
void fixed_tiles(const FixedWinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                 int64_t panel_end) {
  using Side = TileSide<N, M, S>;
  constexpr int kPoints = kLine ? N : N * N;
  const FixedScratch s(c, kPoints);
  const bool fetches = (panel_end - panel_begin) * s.product_row * c.in_channels * kPoints > kResidentNumbers;
  const int64_t pixels = (tile_end - tile_begin) * c.tile * c.tile_height * S * S;
  const bool far = pixels * c.in_channels > kResidentPixels;
  for (int64_t begin = tile_begin; begin < tile_end; begin += c.block_tiles) {
    const int64_t tiles = tile_end - begin < c.block_tiles ? tile_end - begin : c.block_tiles;
    const TilePlace first(c, begin);
    const auto for_tiles = [&](auto&& work) {
      TilePlace at = first;
      for (int64_t t = 0; t < tiles; ++t) {
        const TilePlace next = at.next(c);
        work(t, at, far && begin + t + 1 < tile_end ? &next : nullptr);
        at = next;
      }
    };
    for_tiles([&](int64_t t, const TilePlace& at, const TilePlace* next) {
      c.in_scale ? fixed_input<Side, N, kLine, true>(c, s, t, at, next)
                 : fixed_input<Side, N, kLine, false>(c, s, t, at, next);
    });
    for (int64_t from = panel_begin; from < panel_end; from += c.block_panels) {
      const int64_t to = panel_end - from < c.block_panels ? panel_end : from + c.block_panels;
      fixed_products<Side, kLine>(c, s, tiles, from, to, fetches);
      for_tiles([&](int64_t t, const TilePlace& at, const TilePlace* next) {
        for (int64_t panel = from; panel < to; ++panel)
          fixed_output<Side, N, M, kLine>(c, s, t, at, next,
                                          c.scratch + s.products + (panel - from) * s.product_panel,
                                          panel * s.product_row);
      });
    }
  }
}

void fixed_lines(const FixedWinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                 int64_t panel_end) {
  switch (c.points * 16 + c.tile) {
    case 6 * 16 + 4:
      return fixed_tiles<6, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 6:
      return fixed_tiles<8, 6, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 4:
      return fixed_tiles<8, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 5:
      return fixed_tiles<9, 5, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 3:
      return fixed_tiles<9, 3, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 10 * 16 + 4:
      return fixed_tiles<10, 4, true>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 10 * 16 + 2:
      return fixed_tiles<10, 2, true>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

void fixed_winograd(const FixedWinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                    int64_t panel_end) {
  if (is_line(c)) return fixed_lines(c, tile_begin, tile_end, panel_begin, panel_end);
  switch (c.points * 16 + c.tile) {
    case 4 * 16 + 2:
      return fixed_tiles<4, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 5 * 16 + 3:
      return fixed_tiles<5, 3>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 6 * 16 + 4:
      return fixed_tiles<6, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 7 * 16 + 5:
      return fixed_tiles<7, 5>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 6:
      return fixed_tiles<8, 6>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 4:
      return fixed_tiles<8, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 7 * 16 + 4:
      return fixed_first(c, tile_begin, tile_end, panel_begin, panel_end);
    case 9 * 16 + 4:
      return fixed_tiles<9, 4, false, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 11 * 16 + 5:
      return fixed_tiles<11, 5, false, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 13 * 16 + 6:
      return fixed_tiles<13, 6, false, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 15 * 16 + 7:
      return fixed_tiles<15, 7, false, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

int64_t fixed_scratch(const FixedWinogradCall& c) {
  if (is_first_layer(c)) return FirstScratch(static_cast<int>(c.in_channels)).floats;
  return FixedScratch(c, static_cast<int>(is_line(c) ? c.points : c.points * c.points)).floats;
}

constexpr FixedWinograd kFixedWinograd = {fixed_winograd, fixed_scratch, fixed_weights};

}  // namespace
