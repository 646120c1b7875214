// Max pooling of bfloat16 values, NHWC, without widening: as integers in the order of the values they stand
// for. Columns of windows first: rows that windows share are compared once per column of the image.
#pragma once
#include "cpu/kernels/pool_span.inl"
#include "cpu/kernels/values16.inl"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "cpu/kernels/pool_backward.inl"
#pragma GCC diagnostic pop

namespace {

// As many values as fill a vector register; fewer channels than that take its halves and quarters.
constexpr int64_t kKeyWidth = 2 * Vec::kWidth;
constexpr int64_t kLeastKeys = 8;

template <int64_t kLanes>
struct KeysOf {
  typedef int16_t Type __attribute__((vector_size(kLanes * sizeof(int16_t))));
};
template <int64_t kLanes>
using Keys = typename KeysOf<kLanes>::Type;

// Sign and magnitude become a two's complement, and back. -0 comes before 0.
template <class K>
inline K turned(K bits) {
  return bits ^ ((bits >> 15) & 0x7fff);
}

// Every NaN becomes a positive one: the largest of all.
template <class K>
inline K key_of(K bits) {
  const K magnitude = bits & 0x7fff;
  return magnitude > 0x7f80 ? magnitude : turned(bits);
}

template <class K>
inline K larger_of(K a, K b) {
  return a > b ? a : b;
}
template <class K>
inline K least_key() {  // of -infinity
  return K{} + static_cast<int16_t>(-0x7f81);
}

template <bool kWhole, class K>
inline K load_keys(const uint16_t* p, int64_t lanes) {
  K bits{};
  if (kWhole)
    __builtin_memcpy(&bits, p, sizeof(bits));
  else
    for (int64_t i = 0; i < lanes; ++i) bits[i] = static_cast<int16_t>(p[i]);
  return key_of(bits);
}

template <bool kWhole, class K>
inline void store_keys(K keys, uint16_t* p, int64_t lanes) {
  const K bits = turned(keys);
  if (kWhole)
    __builtin_memcpy(p, &bits, sizeof(bits));
  else
    for (int64_t i = 0; i < lanes; ++i) p[i] = static_cast<uint16_t>(bits[i]);
}

// Rows of a window, and where they lie.
struct PoolRows16 {
  Span rows;
  const uint16_t* input;
  int64_t row, pixel;
  uint16_t* output;
  int64_t out_pixel;
  void* columns;
};

// One row of the output, the channels from `channel` on: as many as K holds, or `lanes`.
template <bool kWhole, class K>
void max_pool_lanes(const PoolCall& c, const PoolRows16& at, int64_t channel, int64_t lanes) {
  K* const columns = static_cast<K*>(at.columns);
  for (int64_t x = 0; x < c.in_width; ++x) {
    const uint16_t* p = at.input + channel + x * at.pixel;
    K best = least_key<K>();
    for (int64_t y = 0; y < at.rows.count; ++y, p += at.row)
      best = larger_of(best, load_keys<kWhole, K>(p, lanes));
    columns[x] = best;
  }
  uint16_t* output = at.output + channel;
  for (int64_t x = 0; x < c.width; ++x, output += at.out_pixel) {
    const Span span =
        span_of(x * c.stride_w - c.pad_w, c.kernel_w, c.dilation_w, c.in_width, c.padded_width - c.pad_w);
    const K* column = columns + span.begin;
    K best = least_key<K>();
    for (int64_t i = 0; i < span.count; ++i, column += c.dilation_w) best = larger_of(best, *column);
    store_keys<kWhole>(best, output, lanes);
  }
}

// All channels, in the widest vectors that they fill; the last ones once more rather than one by one.
template <int64_t kLanes = kKeyWidth>
void max_pool_row(const PoolCall& c, const PoolRows16& at) {
  if (c.channels >= kLanes) {
    for (int64_t channel = 0; channel < c.channels; channel += kLanes)
      max_pool_lanes<true, Keys<kLanes>>(c, at, channel + kLanes > c.channels ? c.channels - kLanes : channel,
                                         kLanes);
  } else if constexpr (kLanes > kLeastKeys) {
    max_pool_row<kLanes / 2>(c, at);
  } else {
    max_pool_lanes<false, Keys<kLanes>>(c, at, 0, c.channels);
  }
}

void max_pool16(const MaxPool16Call& call, int64_t row_begin, int64_t row_end) {
  const PoolCall& c = call.window;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / c.height, y = r % c.height;
    const Span rows =
        span_of(y * c.stride_h - c.pad_h, c.kernel_h, c.dilation_h, c.in_height, c.padded_height - c.pad_h);
    max_pool_row(
        c, {rows, call.input.data + n * call.input.image + rows.begin * call.input.row,
            c.dilation_h * call.input.row, call.input.pixel,
            call.output.data + n * call.output.image + y * call.output.row, call.output.pixel, call.scratch});
  }
}

void max_pool16_backward(const MaxPoolBackward16Call& c, int64_t row_begin, int64_t row_end) {
  pool_backward_of<MaxGradient>(c.window, c.input, c.grad, row_begin, row_end);
}

int64_t max_pool_scratch(const MaxPool16Call& call) {
  return call.window.in_width * static_cast<int64_t>(sizeof(Keys<kKeyWidth>));
}

}  // namespace
