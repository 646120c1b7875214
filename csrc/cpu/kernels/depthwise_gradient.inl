// The gradient of a depthwise convolution's weight: for a vector of channels at a time, input and gradient
// are brought side by side, with their border, some rows at a time; blocks of taps then stay in registers.
#pragma once
#include <string.h>

#include "cpu/kernel_table.h"

namespace {

struct DepthwiseStrip {
  int64_t columns, rows;  // of the input's pixels side by side
  float *input, *grad, *sums;
};

inline int64_t depthwise_columns(const DepthwiseGradCall& c) {
  return (c.width - 1) * c.stride_w + (c.kernel_w - 1) * c.dilation_w + 1;
}

inline int64_t depthwise_rows(const DepthwiseGradCall& c, int64_t strip) {
  return (strip - 1) * c.stride_h + (c.kernel_h - 1) * c.dilation_h + 1;
}

int64_t depthwise_gradient_scratch(const DepthwiseGradCall& c) {
  return Vec::kWidth *
         (depthwise_columns(c) * depthwise_rows(c, c.strip) + c.strip * c.width + c.kernel_h * c.kernel_w);
}

inline void bring_pixel(const float* from, float* to, int64_t lanes) {
  (lanes < Vec::kWidth ? Vec::load_first(from, lanes) : Vec::load(from)).store(to);
}

inline void bring_pixel(const uint16_t* from, float* to, int64_t lanes) {
  uint32_t bits[Vec::kWidth] = {};
  if (lanes < Vec::kWidth)
    for (int64_t i = 0; i < lanes; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
  else
    for (int64_t i = 0; i < Vec::kWidth; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
  memcpy(to, bits, sizeof(bits));
}

// Pixels [first, first + columns) of a row of `width`, those outside it zero.
template <class T>
inline void bring_row(const T* row, int64_t pixel, int64_t first, int64_t columns, int64_t width,
                      int64_t lanes, float* to) {
  for (int64_t x = 0; x < columns; ++x, to += Vec::kWidth) {
    const int64_t at = first + x;
    if (at >= 0 && at < width)
      bring_pixel(row + at * pixel, to, lanes);
    else
      Vec::zero().store(to);
  }
}

// Rows [first, first + rows) of an image, those outside it zero.
template <class V>
inline void bring_rows(const V& image, int64_t height, int64_t width, int64_t first, int64_t rows,
                       int64_t first_column, int64_t columns, int64_t lanes, float* to) {
  for (int64_t y = 0; y < rows; ++y, to += columns * Vec::kWidth) {
    const int64_t at = first + y;
    if (at >= 0 && at < height)
      bring_row(image.data + at * image.row, image.pixel, first_column, columns, width, lanes, to);
    else
      memset(to, 0, static_cast<size_t>(columns * Vec::kWidth) * sizeof(float));
  }
}

template <class V>
inline V depthwise_image(V view, int64_t image, int64_t vector) {
  view.data += image * view.image + vector * Vec::kWidth;
  return view;
}

// Adds to kRows x kColumns taps; `input` and `sums` at the first of them.
template <int kRows, int kColumns>
inline void add_taps(const DepthwiseGradCall& c, const DepthwiseStrip& s, const float* input, int64_t rows,
                     float* sums) {
  const int64_t step = c.stride_w * Vec::kWidth, tap = c.dilation_w * Vec::kWidth,
                row = s.columns * Vec::kWidth, tap_row = c.dilation_h * row;
  Vec sum[kRows][kColumns];
  for (auto& of_row : sum)
    for (Vec& of_tap : of_row) of_tap = Vec::zero();
  const float* grad = s.grad;
  for (int64_t y = 0; y < rows; ++y) {
    const float* x = input + y * c.stride_h * row;
    for (int64_t i = 0; i < c.width; ++i, x += step, grad += Vec::kWidth) {
      const Vec g = Vec::load(grad);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int k = 0; k < kColumns; ++k)
          sum[r][k] = Vec::fma(Vec::load(x + r * tap_row + k * tap), g, sum[r][k]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kColumns; ++k) {
      float* const to = sums + (r * c.kernel_w + k) * Vec::kWidth;
      (Vec::load(to) + sum[r][k]).store(to);
    }
}

// All rows of some columns of taps, as many rows at once as registers hold.
template <int kColumns>
inline void add_columns_of_taps(const DepthwiseGradCall& c, const DepthwiseStrip& s, int64_t rows,
                                int64_t column) {
  constexpr int kRegisters = Vec::kWidth == 16 ? 26 : 12;
  constexpr int kRows = kRegisters / kColumns < 5 ? kRegisters / kColumns : 5;
  const int64_t row = c.dilation_h * s.columns * Vec::kWidth;
  const float* input = s.input + column * c.dilation_w * Vec::kWidth;
  float* sums = s.sums + column * Vec::kWidth;
  int64_t r = 0;
  const auto at = [&](auto taps) { taps(input + r * row, sums + r * c.kernel_w * Vec::kWidth); };
  for (; c.kernel_h - r >= kRows; r += kRows)
    at([&](const float* x, float* to) { add_taps<kRows, kColumns>(c, s, x, rows, to); });
  if constexpr (kRows > 3)
    for (; c.kernel_h - r >= 3; r += 3)
      at([&](const float* x, float* to) { add_taps<3, kColumns>(c, s, x, rows, to); });
  if constexpr (kRows > 2)
    for (; c.kernel_h - r >= 2; r += 2)
      at([&](const float* x, float* to) { add_taps<2, kColumns>(c, s, x, rows, to); });
  for (; r < c.kernel_h; ++r)
    at([&](const float* x, float* to) { add_taps<1, kColumns>(c, s, x, rows, to); });
}

inline void add_strip(const DepthwiseGradCall& c, const DepthwiseStrip& s, int64_t rows) {
  int64_t column = 0;
  for (; c.kernel_w - column >= 7; column += 7) add_columns_of_taps<7>(c, s, rows, column);
  for (; c.kernel_w - column >= 5; column += 5) add_columns_of_taps<5>(c, s, rows, column);
  for (; c.kernel_w - column >= 3; column += 3) add_columns_of_taps<3>(c, s, rows, column);
  for (; column < c.kernel_w; ++column) add_columns_of_taps<1>(c, s, rows, column);
}

void depthwise_gradient(const DepthwiseGradCall& c, int64_t vector_begin, int64_t vector_end) {
  const int64_t taps = c.kernel_h * c.kernel_w;
  DepthwiseStrip s{depthwise_columns(c), depthwise_rows(c, c.strip), c.scratch, nullptr, nullptr};
  s.grad = s.input + s.columns * s.rows * Vec::kWidth;
  s.sums = s.grad + c.strip * c.width * Vec::kWidth;
  for (int64_t v = vector_begin; v < vector_end; ++v) {
    const int64_t left = c.channels - v * Vec::kWidth, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    memset(s.sums, 0, static_cast<size_t>(taps * Vec::kWidth) * sizeof(float));
    for (int64_t image = 0; image < c.images; ++image)
      for (int64_t y = 0; y < c.height; y += c.strip) {
        const int64_t rows = c.height - y < c.strip ? c.height - y : c.strip;
        const auto bring_input = [&](const auto& view) {
          bring_rows(depthwise_image(view, image, v), c.in_height, c.in_width, y * c.stride_h - c.pad_h,
                     depthwise_rows(c, rows), -c.pad_w, s.columns, lanes, s.input);
        };
        const auto bring_grad = [&](const auto& view) {
          bring_rows(depthwise_image(view, image, v), c.height, c.width, y, rows, 0, c.width, lanes, s.grad);
        };
        c.input.data ? bring_input(c.input) : bring_input(c.input16);
        c.grad.data ? bring_grad(c.grad) : bring_grad(c.grad16);
        add_strip(c, s, rows);
      }
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t t = 0; t < taps; ++t)
        c.to[(v * Vec::kWidth + lane) * c.to_channel + t / c.kernel_w * c.to_row +
             t % c.kernel_w * c.to_column] = s.sums[t * Vec::kWidth + lane];
  }
}

}  // namespace
