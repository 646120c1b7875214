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
  typedef uint16_t Bits __attribute__((vector_size(kLanes * sizeof(int16_t))));
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

// How values are compared.
struct ByKey {
  template <class K>
  static K from(K bits) {
    return key_of(bits);
  }
  template <class K>
  static K bits_of(K keys) {
    return turned(keys);
  }
  template <class K>
  static K larger(K a, K b) {
    return a > b ? a : b;
  }
  template <class K>
  static K least() {  // of -infinity
    return K{} + static_cast<int16_t>(-0x7f81);
  }
};

// Behind a ReLU no value has a sign: they are in order as they are stored, without one, and NaN is the
// largest. A value with a sign is larger than all of them, so that it shows in the result.
struct AsStored {
  template <class K>
  static K from(K bits) {
    return bits;
  }
  template <class K>
  static K bits_of(K bits) {
    return bits;
  }
  template <class K>
  static K larger(K a, K b) {
    using Bits = typename KeysOf<sizeof(K) / sizeof(int16_t)>::Bits;
    const auto x = reinterpret_cast<Bits>(a), y = reinterpret_cast<Bits>(b);
    return reinterpret_cast<K>(x > y ? x : y);
  }
  template <class K>
  static K least() {
    return K{};
  }
};

template <class K>
inline bool any_sign(K bits) {
  uint64_t part[sizeof(K) / sizeof(uint64_t)], all = 0;
  __builtin_memcpy(part, &bits, sizeof(bits));
  for (const uint64_t p : part) all |= p;
  return (all & 0x8000800080008000u) != 0;
}

template <bool kWhole, class K>
inline K load_bits16(const uint16_t* p, int64_t lanes) {
  K bits{};
  if (kWhole)
    __builtin_memcpy(&bits, p, sizeof(bits));
  else
    for (int64_t i = 0; i < lanes; ++i) bits[i] = static_cast<int16_t>(p[i]);
  return bits;
}

template <bool kWhole, class K>
inline void store_bits16(K bits, uint16_t* p, int64_t lanes) {
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
  int64_t ahead;  // rows behind them that the next row of the result will read
  uint16_t* output;
  int64_t out_pixel;
  void* columns;
  bool* signs;  // whether some value had a sign
};

// The largest of every column of the rows, of the channels from `channel` on. Returns all their bits.
template <class Order, bool kWhole, class K>
K largest_of_columns(const PoolCall& c, const PoolRows16& at, int64_t channel, int64_t lanes) {
  K* const columns = static_cast<K*>(at.columns);
  K all{};
  for (int64_t x = 0; x < c.in_width; ++x) {
    const uint16_t* p = at.input + channel + x * at.pixel;
    K best = Order::template least<K>();
    for (int64_t y = 0; y < at.rows.count; ++y, p += at.row)
      best = Order::larger(best, Order::from(load_bits16<kWhole, K>(p, lanes)));
    columns[x] = best;
    all |= best;
    for (int64_t y = 0; y < at.ahead; ++y) fetch(p, y * at.row);
  }
  return all;
}

template <class Order, bool kWhole, class K>
void largest_of_windows(const PoolCall& c, const PoolRows16& at, int64_t channel, int64_t lanes) {
  const K* const columns = static_cast<const K*>(at.columns);
  const auto largest = [&](int64_t begin, int64_t count) {
    const K* column = columns + begin;
    K best = *column;
    for (int64_t i = 1; i < count; ++i) best = Order::larger(best, *(column += c.dilation_w));
    return best;
  };
  const int64_t reach = (c.kernel_w - 1) * c.dilation_w;
  uint16_t* output = at.output + channel;
  for (int64_t x = 0; x < c.width; ++x, output += at.out_pixel) {
    const int64_t begin = x * c.stride_w - c.pad_w;
    K best;
    if (begin >= 0 && begin + reach < c.in_width) {
      best = largest(begin, c.kernel_w);
    } else {
      const Span span = span_of(begin, c.kernel_w, c.dilation_w, c.in_width, c.padded_width - c.pad_w);
      best = span.count > 0 ? largest(span.begin, span.count) : Order::template least<K>();
    }
    store_bits16<kWhole>(Order::bits_of(best), output, lanes);
  }
}

// One row of the output, the channels from `channel` on: as many as K holds, or `lanes`. Windows without
// dilation are never empty.
template <bool kWhole, class K>
void max_pool_lanes(const PoolCall& c, const PoolRows16& at, int64_t channel, int64_t lanes) {
  if (!*at.signs && c.dilation_h == 1 && c.dilation_w == 1) {
    *at.signs = any_sign(largest_of_columns<AsStored, kWhole, K>(c, at, channel, lanes));
    if (!*at.signs) return largest_of_windows<AsStored, kWhole, K>(c, at, channel, lanes);
  }
  largest_of_columns<ByKey, kWhole, K>(c, at, channel, lanes);
  largest_of_windows<ByKey, kWhole, K>(c, at, channel, lanes);
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
  bool signs = false;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / c.height, y = r % c.height;
    const Span rows =
        span_of(y * c.stride_h - c.pad_h, c.kernel_h, c.dilation_h, c.in_height, c.padded_height - c.pad_h);
    max_pool_row(c, {rows, call.input.data + n * call.input.image + rows.begin * call.input.row,
                     c.dilation_h * call.input.row, call.input.pixel,
                     r + 1 < row_end && c.dilation_h == 1 ? c.stride_h : 0,
                     call.output.data + n * call.output.image + y * call.output.row, call.output.pixel,
                     call.scratch, &signs});
  }
}

void max_pool16_backward(const MaxPoolBackward16Call& c, int64_t row_begin, int64_t row_end) {
  pool_backward_of<MaxGradient>(c.window, c.input, c.grad, row_begin, row_end);
}

int64_t max_pool_scratch(const MaxPool16Call& call) {
  return call.window.in_width * static_cast<int64_t>(sizeof(Keys<kKeyWidth>));
}

}  // namespace
