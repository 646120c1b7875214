// Pooling, NHWC: vectors run over channels; windows are cut at the image's edge, so no border is read.
#pragma once
#include "cpu/kernels/lanes.inl"
#include "cpu/kernels/pool_span.inl"

namespace {

struct MaxReduce {
  static constexpr float kStart = -__builtin_inff();
  template <class Floats>
  static Floats step_lanes(Floats acc, Floats x) {
    return (x > acc) | (x != x) ? x : acc;
  }
  template <class Floats>
  static Floats finish_lanes(Floats acc, float) {
    return acc;
  }
  static Vec start() { return Vec::set1(kStart); }
  static Vec step(Vec acc, Vec x) { return Vec::max_nan(acc, x); }
  static Vec finish(Vec acc, float) { return acc; }
};

struct MeanReduce {
  static constexpr float kStart = 0;
  template <class Floats>
  static Floats step_lanes(Floats acc, Floats x) {
    return acc + x;
  }
  template <class Floats>
  static Floats finish_lanes(Floats acc, float divisor) {
    return acc / divisor;
  }
  static Vec start() { return Vec::set1(kStart); }
  static Vec step(Vec acc, Vec x) { return acc + x; }
  static Vec finish(Vec acc, float divisor) { return acc / Vec::set1(divisor); }
};

// One output pixel; `window` is the first position inside the image.
template <class Reduce, bool kPrologue>
inline void pool_pixel(const PoolCall& c, const float* window, int64_t rows, int64_t columns, float divisor,
                       float* out) {
  const int64_t row_step = c.dilation_h * c.input.row, column_step = c.dilation_w * c.input.pixel;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel;
    const bool whole = lanes >= Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    const Vec scale = kPrologue ? load(c.prologue.scale + channel) : Vec::zero();
    const Vec shift = kPrologue ? load(c.prologue.shift + channel) : Vec::zero();
    Vec acc = Reduce::start();
    const float* row = window + channel;
    for (int64_t y = 0; y < rows; ++y, row += row_step) {
      const float* p = row;
      for (int64_t x = 0; x < columns; ++x, p += column_step)
        acc = Reduce::step(
            acc, kPrologue ? apply(c.prologue.activation, Vec::fma(load(p), scale, shift)) : load(p));
    }
    acc = Reduce::finish(acc, divisor);
    whole ? acc.store(out + channel) : acc.store_first(out + channel, lanes);
  }
}

// The same without a prologue, for channels that fill no whole vectors.
template <class Reduce>
inline void pool_narrow_pixel(const PoolCall& c, const float* window, int64_t rows, int64_t columns,
                              float divisor, float* out) {
  const int64_t row_step = c.dilation_h * c.input.row, column_step = c.dilation_w * c.input.pixel;
  for_lanes<Vec::kWidth>(c.channels, 0, [&](auto lanes, int64_t channel) {
    auto acc = typename decltype(lanes)::Floats{} + Reduce::kStart;
    const float* row = window + channel;
    for (int64_t y = 0; y < rows; ++y, row += row_step) {
      const float* p = row;
      for (int64_t x = 0; x < columns; ++x, p += column_step) acc = Reduce::step_lanes(acc, lanes.load(p));
    }
    lanes.store(Reduce::finish_lanes(acc, divisor), out + channel);
  });
}

template <class Reduce, bool kPrologue>
void pool_rows(const PoolCall& c, int64_t row_begin, int64_t row_end) {
  const bool narrow = !kPrologue && c.channels % Vec::kWidth != 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const Span rows =
        span_of(y * c.stride_h - c.pad_h, c.kernel_h, c.dilation_h, c.in_height, c.padded_height - c.pad_h);
    const float* image_row = c.input.data + n * c.input.image + rows.begin * c.input.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    for (int64_t x = 0; x < c.width; ++x, out += c.output.pixel) {
      const Span columns =
          span_of(x * c.stride_w - c.pad_w, c.kernel_w, c.dilation_w, c.in_width, c.padded_width - c.pad_w);
      const float* window = image_row + columns.begin * c.input.pixel;
      const auto divisor = static_cast<float>(divisor_of(c, rows, columns));
      if (narrow)
        pool_narrow_pixel<Reduce>(c, window, rows.count, columns.count, divisor, out);
      else
        pool_pixel<Reduce, kPrologue>(c, window, rows.count, columns.count, divisor, out);
    }
  }
}

template <class Reduce>
void pool(const PoolCall& c, int64_t row_begin, int64_t row_end) {
  c.prologue.scale ? pool_rows<Reduce, true>(c, row_begin, row_end)
                   : pool_rows<Reduce, false>(c, row_begin, row_end);
}

}  // namespace
