// Max pooling of bfloat16 values, NHWC, without widening: as integers in the order of the values they stand
// for. Columns of windows first: rows that windows share are compared once per column of the image.
#pragma once
#include "cpu/kernels/pool_span.inl"

namespace {

// As many values as fill a vector register.
constexpr int64_t kKeyWidth = 2 * Vec::kWidth;
typedef int16_t Keys __attribute__((vector_size(kKeyWidth * sizeof(int16_t))));

// Sign and magnitude become a two's complement, and back. -0 comes before 0.
inline Keys turned(Keys bits) { return bits ^ ((bits >> 15) & 0x7fff); }

// Every NaN becomes a positive one: the largest of all.
inline Keys key_of(Keys bits) {
  const Keys magnitude = bits & 0x7fff;
  return magnitude > 0x7f80 ? magnitude : turned(bits);
}

inline Keys larger_of(Keys a, Keys b) { return a > b ? a : b; }
inline Keys least_key() { return Keys{} + static_cast<int16_t>(-0x7f81); }  // of -infinity

template <bool kWhole>
inline Keys load_keys(const uint16_t* p, int64_t lanes) {
  Keys bits{};
  if (kWhole)
    __builtin_memcpy(&bits, p, sizeof(bits));
  else
    for (int64_t i = 0; i < lanes; ++i) bits[i] = static_cast<int16_t>(p[i]);
  return key_of(bits);
}

template <bool kWhole>
inline void store_keys(Keys keys, uint16_t* p, int64_t lanes) {
  const Keys bits = turned(keys);
  if (kWhole)
    __builtin_memcpy(p, &bits, sizeof(bits));
  else
    for (int64_t i = 0; i < lanes; ++i) p[i] = static_cast<uint16_t>(bits[i]);
}

// One row of the output, the channels that `input` and `output` begin with: kKeyWidth of them, or `lanes`.
template <bool kWhole>
void max_pool_lanes(const PoolCall& c, const Span& rows, const uint16_t* input, int64_t row, int64_t pixel,
                    uint16_t* output, int64_t out_pixel, int64_t lanes, Keys* columns) {
  for (int64_t x = 0; x < c.in_width; ++x) {
    const uint16_t* p = input + x * pixel;
    Keys best = least_key();
    for (int64_t y = 0; y < rows.count; ++y, p += row) best = larger_of(best, load_keys<kWhole>(p, lanes));
    columns[x] = best;
  }
  for (int64_t x = 0; x < c.width; ++x, output += out_pixel) {
    const Span span =
        span_of(x * c.stride_w - c.pad_w, c.kernel_w, c.dilation_w, c.in_width, c.padded_width - c.pad_w);
    const Keys* column = columns + span.begin;
    Keys best = least_key();
    for (int64_t i = 0; i < span.count; ++i, column += c.dilation_w) best = larger_of(best, *column);
    store_keys<kWhole>(best, output, lanes);
  }
}

void max_pool16(const MaxPool16Call& call, int64_t row_begin, int64_t row_end) {
  const PoolCall& c = call.window;
  auto* columns = reinterpret_cast<Keys*>(call.scratch);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / c.height, y = r % c.height;
    const Span rows =
        span_of(y * c.stride_h - c.pad_h, c.kernel_h, c.dilation_h, c.in_height, c.padded_height - c.pad_h);
    const uint16_t* from = call.input.data + n * call.input.image + rows.begin * call.input.row;
    uint16_t* to = call.output.data + n * call.output.image + y * call.output.row;
    const int64_t row = c.dilation_h * call.input.row;
    if (c.channels < kKeyWidth) {
      max_pool_lanes<false>(c, rows, from, row, call.input.pixel, to, call.output.pixel, c.channels, columns);
      continue;
    }
    for (int64_t channel = 0; channel < c.channels; channel += kKeyWidth) {
      // The last channels once more rather than one by one.
      const int64_t first = channel + kKeyWidth > c.channels ? c.channels - kKeyWidth : channel;
      max_pool_lanes<true>(c, rows, from + first, row, call.input.pixel, to + first, call.output.pixel,
                           kKeyWidth, columns);
    }
  }
}

int64_t max_pool_scratch(const MaxPool16Call& call) {
  return call.window.in_width * static_cast<int64_t>(sizeof(Keys));
}

}  // namespace
