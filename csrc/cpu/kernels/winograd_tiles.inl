// Tiles of Winograd's algorithm: where they lie, and their way from the input and to the output.
#pragma once
#include "cpu/kernels/activation.inl"
#include "cpu/kernels/stream.inl"
#include "cpu/kernels/winograd_places.inl"
#include "cpu/kernels/winograd_transforms.inl"

namespace {

// Transformed tiles lie in blocks of this many input channels, tile by tile: rows of a product are at a
// distance that the compiler knows.
constexpr int64_t kBlockChannels = 32;

// Where transformed tiles are written: channel c of a tile lies in block c >> shift.
struct TileRows {
  int64_t row, point, block;  // distances of two tiles, of two points, of two blocks of channels
  int shift;
  int64_t offset(int64_t tile, int64_t channel) const {
    const int64_t number = channel >> shift;
    return tile * row + number * block + channel - (number << shift);
  }
};

// Where the parts of a block of tiles lie in scratch memory. Distances of points are kept off multiples of 4
// KB, which would put all points into one set of the first-level cache.
// Raw weights are gathered for a few input channels, transformed for some more, and all tiles multiplied by
// these.
constexpr int64_t kGatheredChannels = 16;
constexpr int64_t kRawChannels = 2 * kBlockChannels;

struct WinogradScratch {
  TileRows input;
  int64_t product_row, product_panel, product_point;
  int64_t kernel_point = 0, gathered = 0;  // of raw weights; 0 where they are packed
  int64_t floats;
  WinogradScratch(const WinogradCall& c, int points, int64_t panels) {
    if (c.raw) panels = 1;  // one after the other
    const int64_t w = Vec::kWidth, blocks = (c.in_channels + kBlockChannels - 1) / kBlockChannels;
    input = {kBlockChannels, blocks * c.block_tiles * kBlockChannels + w, c.block_tiles * kBlockChannels, 5};
    static_assert(kBlockChannels == 1 << 5);
    product_row = c.panel_vectors * w;
    product_panel = c.block_tiles * product_row;
    product_point = panels * product_panel + w;
    floats = points * (input.point + product_point);
    if (!c.raw) return;
    const int64_t size = c.points - c.tile + 1;
    kernel_point = kRawChannels * product_row + w;
    gathered = kGatheredChannels * size * size * product_row;
    floats += points * kernel_point + gathered;
  }
};

// Asks for a line of each of these pixels, to read (0) or to write (1).
template <int kWrites>
inline void fetch_pixels(const float* p, const View& v, int rows, int column_begin, int column_end) {
  for (int y = 0; y < rows; ++y)
    for (int x = column_begin; x < column_end; ++x)
      __builtin_prefetch(p + y * v.row + x * v.pixel, kWrites, 3);
}

// `next`: the tile, (its first columns lie in this one, mostly) whose input is fetched meanwhile, where it is
// far away (else null).
// kLine: kernels and tiles of one row.
template <int N, int M, bool kLine, bool kPrologue>
void winograd_input(const WinogradCall& c, const TileRows& s, int64_t tile, const TilePlace& at,
                    const TilePlace* next, float* to) {
  constexpr int kRows = kLine ? 1 : N;
  const float* from = at_place(c.input, at);
  const float* ahead = next ? at_place(c.input, *next) : nullptr;
  const Inside rows(at.y - c.prologue.top, c.prologue.height),
      columns(at.x - c.prologue.left, c.prologue.width);
  for (int64_t channel = 0; channel < c.in_channels; channel += Vec::kWidth) {
    const int64_t lanes = c.in_channels - channel;
    auto load = [&](const float* p) {
      return lanes >= Vec::kWidth ? Vec::load(p) : Vec::load_first(p, lanes);
    };
    if (ahead) fetch_pixels<0>(ahead + channel, c.input, kRows, N - M, N);
    const Vec scale = kPrologue ? load(c.prologue.scale + channel) : Vec::zero();
    const Vec shift = kPrologue ? load(c.prologue.shift + channel) : Vec::zero();
    Vec t[kRows * N];
#pragma GCC unroll 16
    for (int y = 0; y < kRows; ++y) {
      Vec d[N];
      const float* p = from + y * c.input.row + channel;
#pragma GCC unroll 16
      for (int x = 0; x < N; ++x, p += c.input.pixel)
        if constexpr (kPrologue)
          d[x] = rows.holds(y) && columns.holds(x)
                     ? apply(c.prologue.activation, Vec::fma(load(p), scale, shift))
                     : Vec::zero();
        else
          d[x] = load(p);
      transform_input<N>(d, 1, t + y * N, 1);
    }
    float* out = to + s.offset(tile, channel);
#pragma GCC unroll 16
    for (int x = 0; x < N; ++x) {
      if constexpr (kLine) {
        t[x].store(out + x * s.point);
      } else {
        Vec v[N];
        transform_input<N>(t + x, N, v, 1);
#pragma GCC unroll 16
        for (int y = 0; y < N; ++y) v[y].store(out + (y * N + x) * s.point);
      }
    }
  }
}

template <int N, int M, bool kLine>
void winograd_output(const WinogradCall& c, const WinogradScratch& s, int64_t tile, const TilePlace& at,
                     const TilePlace* next, const float* product, int64_t panel_channel) {
  constexpr int kRows = kLine ? 1 : M;
  const int64_t below = (c.height - at.y + c.step - 1) / c.step,
                beside = (c.width - at.x + c.step - 1) / c.step;
  const int64_t rows = below < kRows ? below : kRows, columns = beside < M ? beside : M;
  const int64_t end = c.channels - panel_channel < s.product_row ? c.channels - panel_channel : s.product_row;
  float* const to = at_place(c.output, at) + panel_channel;
  const float* const added = c.residual.data ? at_place(c.residual, at) + panel_channel : nullptr;
  const float* const ahead = next ? at_place(c.output, *next) + panel_channel : nullptr;
  for (int64_t channel = 0; channel < end; channel += Vec::kWidth) {
    const int64_t lanes = end - channel < Vec::kWidth ? end - channel : Vec::kWidth;
    const float* from = product + tile * s.product_row + channel;
    if (ahead) fetch_pixels<1>(ahead + channel, c.output, kRows, 0, M);
    Vec t[kRows * N];
#pragma GCC unroll 16
    for (int x = 0; x < N; ++x) {
      if constexpr (kLine) {
        t[x] = Vec::load(from + x * s.product_point);
      } else {
        Vec m[N];
#pragma GCC unroll 16
        for (int y = 0; y < N; ++y) m[y] = Vec::load(from + (y * N + x) * s.product_point);
        transform_output<N, M>(m, 1, t + x, N);
      }
    }
    const Vec scale = c.scale ? Vec::load(c.scale + panel_channel + channel) : Vec::set1(1.0f);
    const Vec shift = c.shift ? Vec::load(c.shift + panel_channel + channel) : Vec::zero();
#pragma GCC unroll 16
    for (int y = 0; y < kRows; ++y) {
      if (y >= rows) break;
      Vec v[M];
      transform_output<N, M>(t + y * N, 1, v, 1);
      float* out = to + y * c.output.row + channel;
      const float* residual = added ? added + y * c.residual.row + channel : nullptr;
#pragma GCC unroll 16
      for (int x = 0; x < M; ++x) {
        if (x >= columns) break;
        Vec r = c.scale ? Vec::fma(v[x], scale, shift) : v[x] + shift;
        if (residual) r = r + Vec::load_first(residual + x * c.residual.pixel, lanes);
        apply_short(c.activation, r).store_first(out + x * c.output.pixel, lanes);
      }
    }
  }
  if (in_registers(c.activation) || columns <= 0) return;
  for (int64_t y = 0; y < rows; ++y)
    activate_pixels(to + y * c.output.row, c.output.pixel, columns, end, c.activation);
}

}  // namespace
