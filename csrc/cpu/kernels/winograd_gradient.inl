// The gradient of a K x K kernel by Winograd's F(K x K, T x T), N points: tiles of T x T gradients play the
// kernel's part.
#pragma once
#include "cpu/kernels/gather.inl"
#include "cpu/kernels/weight_gradient.inl"
#include "cpu/kernels/winograd_tiles.inl"

namespace {

// Where the parts of a strip of tiles lie in a thread's scratch memory: inputs of its own channels in blocks,
// and gradients of all channels in panels, tile by tile; then the sums of one block and panel, and their
// kernels. Distances of points are kept off multiples of 4 KB.
struct GradientScratch {
  TileRows input;
  int64_t panel_lanes, panels, grad_panel, grad_point;
  int64_t sums_point, sums;  // of a block and a panel: distance of two points, all
  int64_t kernels, floats;
  GradientScratch(const WinogradGradCall& c, int64_t in_channels) {
    const int64_t w = Vec::kWidth, points = c.points * c.points;
    const int64_t blocks = (in_channels + kBlockChannels - 1) / kBlockChannels;
    input = {kBlockChannels, blocks * c.strip_tiles * kBlockChannels + w, c.strip_tiles * kBlockChannels, 5};
    panel_lanes = c.panel_vectors * w;
    panels = (c.channels + panel_lanes - 1) / panel_lanes;
    grad_panel = c.strip_tiles * panel_lanes;
    grad_point = panels * grad_panel + w;
    sums_point = kBlockChannels * panel_lanes + w;
    sums = points * sums_point;
    kernels = c.kernel * c.kernel * kBlockChannels * w;
    floats = points * (input.point + grad_point) + sums + kernels;
  }
};

template <int N, int T>
void transform_gradient_tile(const WinogradGradCall& c, const GradientScratch& s, int64_t tile,
                             const TilePlace& at, const TilePlace* next, float* grad) {
  const int64_t rows = c.height - at.y < T ? c.height - at.y : T;
  const int64_t columns = c.width - at.x < T ? c.width - at.x : T;
  const float* from = at_place(c.grad, at);
  const float* ahead = next ? at_place(c.grad, *next) : nullptr;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t left = c.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    const GradientPanel panel(c.channels, c.panel_vectors, channel / s.panel_lanes);
    float* to = grad + channel / s.panel_lanes * s.grad_panel + tile * panel.vectors * Vec::kWidth + channel -
                panel.channel;
    if (ahead) fetch_pixels<0>(ahead + channel, c.grad, T, 0, T);
    Vec t[N * T];
#pragma GCC unroll 8
    for (int x = 0; x < T; ++x) {
      Vec g[T];
#pragma GCC unroll 8
      for (int y = 0; y < T; ++y)
        g[y] = y < rows && x < columns
                   ? Vec::load_first(from + y * c.grad.row + x * c.grad.pixel + channel, lanes)
                   : Vec::zero();
      transform_kernel<N, T>(g, t + x, T);
    }
#pragma GCC unroll 16
    for (int y = 0; y < N; ++y) {
      Vec u[N];
      transform_kernel<N, T>(t + y * T, u, 1);
#pragma GCC unroll 16
      for (int x = 0; x < N; ++x) u[x].store(to + (y * N + x) * s.grad_point);
    }
  }
}

// Sums of a block of input channels by a panel of output channels over the tiles of a strip, point by point.
void add_tile_products(const WinogradGradCall& c, const GradientScratch& s, const GradientPanel& panel,
                       const float* input, int64_t channels, const float* grad, int64_t tiles, float* sums,
                       bool first) {
  const int64_t blocks = position_blocks(channels, c.panel_vectors), row = panel.vectors * Vec::kWidth;
  static constexpr int64_t kNext[] = {0, 1, 2, 3, 4, 5, 6, 7};
  PixelRuns runs;
  runs.count = 1;
  runs.pixel = s.input.row;
  runs.run[0].length = tiles;
  for (int64_t point = 0; point < c.points * c.points; ++point)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = channels * block / blocks, end = channels * (block + 1) / blocks;
      runs.run[0].input = input + point * s.input.point + begin;
      panel_products(panel.vectors, end - begin, runs, kNext, grad + point * s.grad_point,
                     sums + point * s.sums_point + begin * row, first);
    }
}

// Sums of a block and a panel back to K x K kernels, and into the weight's gradient. `in`: the first channel.
template <int N, int K>
void finish_kernels(const WinogradGradCall& c, const GradientScratch& s, const GradientPanel& panel,
                    const float* sums, int64_t in, int64_t channels, float* kernels) {
  const int64_t row = panel.vectors * Vec::kWidth;
  for (int64_t lane = 0; lane < panel.channels; lane += Vec::kWidth) {
    for (int64_t i = 0; i < channels; ++i) {
      const float* from = sums + i * row + lane;
      Vec t[K * N];
#pragma GCC unroll 16
      for (int x = 0; x < N; ++x) {
        Vec m[N];
#pragma GCC unroll 16
        for (int y = 0; y < N; ++y) m[y] = Vec::load(from + (y * N + x) * s.sums_point);
        transform_output<N, K>(m, 1, t + x, N);
      }
#pragma GCC unroll 5
      for (int y = 0; y < K; ++y) {
        Vec v[K];
        transform_output<N, K>(t + y * N, 1, v, 1);
#pragma GCC unroll 5
        for (int x = 0; x < K; ++x) v[x].store(kernels + ((y * K + x) * kBlockChannels + i) * Vec::kWidth);
      }
    }
    const int64_t lanes = panel.channels - lane < Vec::kWidth ? panel.channels - lane : Vec::kWidth;
    scatter_kernels({kernels, Vec::kWidth, kBlockChannels * Vec::kWidth, K, K, channels, lanes,
                     c.weight_grad + (panel.channel + lane) * c.strides.out + in * c.strides.in,
                     c.strides.out, c.strides.in, c.strides.row, c.strides.column});
  }
}

template <int N, int K>
void winograd_gradient_of(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  constexpr int T = N - K + 1;
  const GradientScratch s(c, in_end - in_begin);
  float* input = c.scratch;
  float* grad = input + N * N * s.input.point;
  float* own = grad + N * N * s.grad_point;
  float* kernels = own + s.sums;
  WinogradCall tiles_of{};
  tiles_of.input = c.input;
  tiles_of.input.data += in_begin;
  tiles_of.in_channels = in_end - in_begin;
  tiles_of.tile = tiles_of.tile_height = T;
  tiles_of.tile_rows = (c.height + T - 1) / T;
  tiles_of.tile_columns = (c.width + T - 1) / T;
  const int64_t tiles = c.images * tiles_of.tile_rows * tiles_of.tile_columns;
  const bool far_input = tiles * T * T * tiles_of.in_channels > kNearFloats,
             far_grad = tiles * T * T * c.channels > kNearFloats;
  TilePlace at(tiles_of, 0);
  for (int64_t begin = 0; begin < tiles; begin += c.strip_tiles) {
    const int64_t count = tiles - begin < c.strip_tiles ? tiles - begin : c.strip_tiles;
    for (int64_t t = 0; t < count; ++t) {
      const TilePlace next = at.next(tiles_of);
      winograd_input<N, T, false, false>(tiles_of, s.input, t, at, far_input ? &next : nullptr, input);
      transform_gradient_tile<N, T>(c, s, t, at, far_grad ? &next : nullptr, grad);
      at = next;
    }
    float* sums = c.keeps_sums(tiles) ? c.sums : own;
    for (int64_t p = 0; p < s.panels; ++p) {
      const GradientPanel panel(c.channels, c.panel_vectors, p);
      for (int64_t in = 0; in < tiles_of.in_channels; in += kBlockChannels) {
        const int64_t left = tiles_of.in_channels - in,
                      channels = left < kBlockChannels ? left : kBlockChannels;
        add_tile_products(c, s, panel, input + in / kBlockChannels * s.input.block, channels,
                          grad + p * s.grad_panel, count, sums, begin == 0 && !c.adds);
        if (begin + count == tiles && c.finishes)
          finish_kernels<N, K>(c, s, panel, sums, in_begin + in, channels, kernels);
        if (c.keeps_sums(tiles)) sums += s.sums;
      }
    }
  }
}

void winograd_gradient(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  switch (c.points * 16 + c.kernel) {
    case 5 * 16 + 3:
      return winograd_gradient_of<5, 3>(c, in_begin, in_end);
    case 6 * 16 + 3:
      return winograd_gradient_of<6, 3>(c, in_begin, in_end);
    case 8 * 16 + 3:
      return winograd_gradient_of<8, 3>(c, in_begin, in_end);
    case 6 * 16 + 5:
      return winograd_gradient_of<6, 5>(c, in_begin, in_end);
    case 8 * 16 + 5:
      return winograd_gradient_of<8, 5>(c, in_begin, in_end);
    case 10 * 16 + 5:
      return winograd_gradient_of<10, 5>(c, in_begin, in_end);
  }
}

int64_t winograd_gradient_scratch(const WinogradGradCall& c, int64_t in_channels) {
  return GradientScratch(c, in_channels).floats;
}

int64_t winograd_gradient_sums(const WinogradGradCall& c, int64_t in_channels) {
  const GradientScratch s(c, in_channels);
  return s.sums * s.panels * ((in_channels + kBlockChannels - 1) / kBlockChannels);
}

}  // namespace
