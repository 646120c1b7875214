// Average pooling of bfloat16 values, NHWC, in float32 and rounded once. Columns of windows first, as in
// max_pool16.inl: rows that windows share are added up once per column of the image.
#pragma once
#include "cpu/kernels/activation16.inl"
#include "cpu/kernels/pool_span.inl"
#include "cpu/kernels/values16.inl"

namespace {

// One row of the result, and what it is read from.
struct MeanRow16 {
  const AvgPool16Call& call;
  Span rows;
  const uint16_t* input;  // the first of the rows
  uint16_t* output;
  int64_t ahead;  // rows behind them that the next row of the result will read
};

template <bool kPrologue, int NV>
void sums_of_columns(const MeanRow16& at, int64_t channel, int64_t lanes, Columns<NV>* sums) {
  const PoolCall& c = at.call.window;
  const int64_t row = c.dilation_h * at.call.input.row;
  const ShortActivation activation(c.prologue.activation);
  const auto scale = kPrologue ? Columns<NV>::load(c.prologue.scale + channel, lanes) : Columns<NV>::zero();
  const auto shift = kPrologue ? Columns<NV>::load(c.prologue.shift + channel, lanes) : Columns<NV>::zero();
  const uint16_t* pixel = at.input + channel;
  for (int64_t x = 0; x < c.in_width; ++x, pixel += at.call.input.pixel) {
    auto sum = Columns<NV>::zero();
    const uint16_t* p = pixel;
    for (int64_t y = 0; y < at.rows.count; ++y, p += row) {
      const auto values = Columns<NV>::load(p, lanes);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j)
        sum.v[j] = sum.v[j] +
                   (kPrologue ? activation.of(Vec::fma(values.v[j], scale.v[j], shift.v[j])) : values.v[j]);
    }
    sums[x] = sum;
    for (int64_t y = 0; y < at.ahead; ++y) fetch(p, y * row);
  }
}

template <int NV>
void means_of_windows(const MeanRow16& at, int64_t channel, int64_t lanes, const Columns<NV>* sums) {
  const PoolCall& c = at.call.window;
  uint16_t* output = at.output + channel;
  for (int64_t x = 0; x < c.width; ++x, output += at.call.output.pixel) {
    const Span span =
        span_of(x * c.stride_w - c.pad_w, c.kernel_w, c.dilation_w, c.in_width, c.padded_width - c.pad_w);
    const Vec part = Vec::set1(1.0f / static_cast<float>(divisor_of(c, at.rows, span)));
    auto sum = Columns<NV>::zero();
    const Columns<NV>* column = sums + span.begin;
    for (int64_t i = 0; i < span.count; ++i, column += c.dilation_w)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum.v[j] = sum.v[j] + column->v[j];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum.v[j] = sum.v[j] * part;
    sum.store(output, lanes);
  }
}

// Output rows [row_begin, row_end) over all images.
void avg_pool16(const AvgPool16Call& call, int64_t row_begin, int64_t row_end) {
  const PoolCall& c = call.window;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / c.height, y = r % c.height;
    const Span rows =
        span_of(y * c.stride_h - c.pad_h, c.kernel_h, c.dilation_h, c.in_height, c.padded_height - c.pad_h);
    const MeanRow16 at{call, rows, call.input.data + n * call.input.image + rows.begin * call.input.row,
                       call.output.data + n * call.output.image + y * call.output.row,
                       r + 1 < row_end && c.dilation_h == 1 ? c.stride_h : 0};
    for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
      using Cols = decltype(columns);
      auto* sums = static_cast<Cols*>(call.scratch);
      (c.prologue.scale ? sums_of_columns<true, Cols::kVectors>
                        : sums_of_columns<false, Cols::kVectors>)(at, channel, lanes, sums);
      means_of_windows(at, channel, lanes, sums);
    });
  }
}

int64_t avg_pool_scratch(const AvgPool16Call& call) {
  return call.window.in_width * static_cast<int64_t>(sizeof(Columns<2>));
}

}  // namespace
