// Depthwise convolution and groups of few channels, NHWC: a register block is a vector of channels by R
// neighbouring output pixels of a row. Where kernel positions of a row are neighbouring pixels, the block
// reads each of those once for all outputs that meet it. Vectors of channels run inside blocks of pixels, so
// that memory is read in order.
#pragma once
#include "cpu/kernels/activation.inl"
#include "cpu/kernels/stream.inl"

namespace {

// Output pixels of a block; with the weights of one kernel row and an input they fit the registers.
constexpr int kDepthwisePixels = Vec::kWidth >= 8 ? 8 : 4;
// As many as leave room for a row of so many kernel positions: eight sums are enough for two additions per
// cycle only where none is ever late.
constexpr int block_pixels(int positions) {
  return kAddressedProducts && positions < 7 ? 15 - positions : kDepthwisePixels;
}

// What a block works on: pointers to its first pixel's first channel here.
struct DepthwiseBlock {
  const float* x;
  const float* weight;
  const float* scale;  // these may be null
  const float* shift;
  const float* residual;
  float* y;
  int64_t lanes;
};

struct WholeVector {
  Vec load(const float* p) const { return Vec::load(p); }
  void store(Vec v, float* p) const { v.store(p); }
};

struct PartOfVector {
  int64_t lanes;
  Vec load(const float* p) const { return Vec::load_first(p, lanes); }
  void store(Vec v, float* p) const { v.store_first(p, lanes); }
};

// K kernel positions of a row, S pixels between outputs.
template <int K, int S>
struct Neighbours {
  static constexpr int kPixels = block_pixels(K);

  template <int R, class Lanes>
  static void sum(const DepthwiseCall& c, const DepthwiseBlock& b, const Lanes& at, Vec (&acc)[R]) {
    const int64_t pixel = c.input.pixel;
    for (int64_t t = 0; t < c.taps; t += K) {
      Vec w[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) w[k] = Vec::load(b.weight + (t + k) * Vec::kWidth);
      const float* p = b.x + c.tap[t];
#pragma GCC unroll 32
      for (int i = 0; i < (R - 1) * S + K; ++i, p += pixel) {
        const Vec x = at.load(p);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
          if (i >= r * S && i < r * S + K) acc[r] = Vec::fma(x, w[i - r * S], acc[r]);
      }
    }
  }
};

// The same for groups of G channels: each input channel of a group is spread over the group's lanes, once for
// all outputs and kernel positions that meet it.
template <int K, int S, int G>
struct NeighbourGroups {
  static constexpr int kPixels = block_pixels(K);

  template <int R, class Lanes>
  static void sum(const DepthwiseCall& c, const DepthwiseBlock& b, const Lanes& at, Vec (&acc)[R]) {
    const int64_t pixel = c.input.pixel;
    const float* w = b.weight;
    for (int64_t t = 0; t < c.taps; t += K, w += K * G * Vec::kWidth) {
      const float* p = b.x + c.tap[t];
#pragma GCC unroll 32
      for (int i = 0; i < (R - 1) * S + K; ++i, p += pixel) {
        const Vec x = at.load(p);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
          const Vec spread = Vec::spread(x, G, g);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
            if (i >= r * S && i < r * S + K)
              acc[r] = Vec::fma(spread, Vec::load(w + ((i - r * S) * G + g) * Vec::kWidth), acc[r]);
        }
      }
    }
  }
};

// The same for groups of as many channels as a vector has: an input channel is read into all lanes.
template <int K, int S>
struct NeighbourVectors {
  static constexpr int kPixels = block_pixels(K);

  template <int R, class Lanes>
  static void sum(const DepthwiseCall& c, const DepthwiseBlock& b, const Lanes&, Vec (&acc)[R]) {
    const int64_t pixel = c.input.pixel;
    const float* row = b.weight;
    for (int64_t t = 0; t < c.taps; t += K, row += K * Vec::kWidth * Vec::kWidth)
      for (int64_t g = 0; g < Vec::kWidth; ++g) {
        Vec w[K];
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) w[k] = Vec::load(row + (k * Vec::kWidth + g) * Vec::kWidth);
        const float* p = b.x + c.tap[t] + g;
#pragma GCC unroll 32
        for (int i = 0; i < (R - 1) * S + K; ++i, p += pixel) {
          const Vec x = Vec::set1(*p);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
            if (i >= r * S && i < r * S + K) acc[r] = Vec::fma(x, w[i - r * S], acc[r]);
        }
      }
  }
};

struct AnyPositions {
  static constexpr int kPixels = kDepthwisePixels;

  template <int R, class Lanes>
  static void sum(const DepthwiseCall& c, const DepthwiseBlock& b, const Lanes& at, Vec (&acc)[R]) {
    for (int64_t t = 0; t < c.taps; ++t) {
      const Vec w = Vec::load(b.weight + t * Vec::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r] = Vec::fma(at.load(b.x + c.tap[t] + r * c.stride_w * c.input.pixel), w, acc[r]);
    }
  }
};

// One question per block, not per pixel.
template <int R, class Lanes>
[[gnu::always_inline]] inline void finish_block(const DepthwiseCall& c, const DepthwiseBlock& b,
                                                const Lanes& at, Vec (&acc)[R]) {
  if (b.scale) {
    const Vec scale = at.load(b.scale);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = acc[r] * scale;
  }
  if (b.shift) {
    const Vec shift = at.load(b.shift);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = acc[r] + shift;
  }
  if (b.residual) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = acc[r] + at.load(b.residual + r * c.residual.pixel);
  }
  activate_in_block(c.activation, [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = f(acc[r]);
  });
}

template <class Positions, int R, class Lanes>
inline void depthwise_block(const DepthwiseCall& c, const DepthwiseBlock& b, const Lanes& at) {
  Vec acc[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r] = Vec::zero();
  Positions::template sum<R>(c, b, at, acc);
  finish_block<R>(c, b, at, acc);
  const int64_t pixel =
      c.output.pixel;  // read once: the compiler does not know that stores leave it as it is
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) at.store(acc[r], b.y + r * pixel);
}

// A line of each of the R pixels behind R others: where one row ends the next begins, as a rule.
template <int R>
inline void fetch_next_pixels(const float* y, int64_t pixel) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) __builtin_prefetch(y + (R + r) * pixel, 1, 3);
}

// All channels of R pixels.
template <class Positions, int R>
void depthwise_pixels(const DepthwiseCall& c, const float* x, float* y, const float* residual, bool far) {
  const auto from = [](const float* p, int64_t channel) { return p ? p + channel : nullptr; };
  int64_t channel = 0;
  for (; channel < c.channels; channel += Vec::kWidth) {
    if (far && channel % kLineFloats == 0) fetch_next_pixels<R>(y + channel, c.output.pixel);
    const DepthwiseBlock block{x + channel,
                               c.weight + channel * c.taps * c.group,
                               from(c.scale, channel),
                               from(c.shift, channel),
                               from(residual, channel),
                               y + channel,
                               c.channels - channel};
    if (block.lanes >= Vec::kWidth)
      depthwise_block<Positions, R>(c, block, WholeVector{});
    else
      depthwise_block<Positions, R>(c, block, PartOfVector{block.lanes});
  }
  // Long ones over all channels at once, which are still near: block by block they take a fifth longer.
  if (!in_blocks(c.activation)) activate_pixels(y, c.output.pixel, R, c.channels, c.activation);
}

template <class Positions, int R = Positions::kPixels>
void depthwise_pixels_of(int64_t pixels, const DepthwiseCall& c, const float* x, float* y,
                         const float* residual, bool far) {
  if (pixels == R) return depthwise_pixels<Positions, R>(c, x, y, residual, far);
  if constexpr (R > 1) depthwise_pixels_of<Positions, R - 1>(pixels, c, x, y, residual, far);
}

template <class Positions>
void depthwise_rows(const DepthwiseCall& c, int64_t row_begin, int64_t row_end) {
  const int64_t blocks = (c.width + Positions::kPixels - 1) / Positions::kPixels;
  // Far memory is asked for before it is written.
  const bool far = kFetchesOutput && (row_end - row_begin) * c.output.row > kNearFloats;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const float* in = c.input.data + n * c.input.image + y * c.stride_h * c.input.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    const float* res =
        c.residual.data ? c.residual.data + n * c.residual.image + y * c.residual.row : nullptr;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t x = c.width * block / blocks, end = c.width * (block + 1) / blocks;
      depthwise_pixels_of<Positions>(end - x, c, in + x * c.stride_w * c.input.pixel,
                                     out + x * c.output.pixel, res ? res + x * c.residual.pixel : nullptr,
                                     far);
    }
  }
}

template <int G>
void group_rows(const DepthwiseCall& c, int64_t row_begin, int64_t row_end) {
  if constexpr (G < Vec::kWidth)
    c.stride_w == 1 ? depthwise_rows<NeighbourGroups<3, 1, G>>(c, row_begin, row_end)
                    : depthwise_rows<NeighbourGroups<3, 2, G>>(c, row_begin, row_end);
  if constexpr (G == Vec::kWidth)
    c.stride_w == 1 ? depthwise_rows<NeighbourVectors<3, 1>>(c, row_begin, row_end)
                    : depthwise_rows<NeighbourVectors<3, 2>>(c, row_begin, row_end);
}

void depthwise(const DepthwiseCall& c, int64_t row_begin, int64_t row_end) {
  if (c.group == 4) return group_rows<4>(c, row_begin, row_end);
  if (c.group == 8) return group_rows<8>(c, row_begin, row_end);
  if (c.row_taps == 3 && c.stride_w == 1) return depthwise_rows<Neighbours<3, 1>>(c, row_begin, row_end);
  if (c.row_taps == 3 && c.stride_w == 2) return depthwise_rows<Neighbours<3, 2>>(c, row_begin, row_end);
  if (c.row_taps == 5 && c.stride_w == 1) return depthwise_rows<Neighbours<5, 1>>(c, row_begin, row_end);
  if (c.row_taps == 5 && c.stride_w == 2) return depthwise_rows<Neighbours<5, 2>>(c, row_begin, row_end);
  if (c.row_taps == 7 && c.stride_w == 1) return depthwise_rows<Neighbours<7, 1>>(c, row_begin, row_end);
  depthwise_rows<AnyPositions>(c, row_begin, row_end);
}

}  // namespace
