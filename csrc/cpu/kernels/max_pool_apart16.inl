// The gradient of max pooling on bfloat16 images whose windows do not overlap, without widening: every value
// is written once, and is zero or the gradient as it was given.
#pragma once
#include "cpu/kernels/max_pool16.inl"

namespace {

// As key_of, but 0 is not larger than -0: of equal values the first one wins.
template <class K>
inline K winner_key(K bits) {
  return key_of(bits) - (bits == K{} + static_cast<int16_t>(INT16_MIN));
}

// The first largest value of those that are shown one after the other; a NaN beats all before it.
template <class K>
struct Winner {
  K best = K{} + static_cast<int16_t>(INT16_MIN), place{};

  void show(K bits, int16_t number) {
    const K key = winner_key(bits);
    const K beats = (key > best) | (key > 0x7f80);
    place = beats ? K{} + number : place;
    best = beats ? key : best;
  }
  K share(K grad, int16_t number) const { return grad & (place == K{} + number); }
};

template <class K>
inline K load_bits(const uint16_t* p) {
  K bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bits;
}
template <class K>
inline void store_bits(K bits, uint16_t* p) {
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// A row of windows, of which rows [write_begin, write_end) are written.
struct ApartRow {
  const uint16_t *input, *grad;
  uint16_t* to;
  int64_t input_row, input_pixel, grad_pixel, to_row, to_pixel;
  int64_t rows, columns;  // of a window
  int64_t write_begin, write_end;
};

// As many channels of one window as K holds.
template <class K>
void spread_window(const ApartRow& r, int64_t x, int64_t channel) {
  Winner<K> winner;
  int16_t number = 0;
  for (int64_t y = 0; y < r.rows; ++y) {
    const uint16_t* p = r.input + y * r.input_row + x * r.columns * r.input_pixel + channel;
    for (int64_t i = 0; i < r.columns; ++i, p += r.input_pixel) winner.show(load_bits<K>(p), number++);
  }
  const K grad = load_bits<K>(r.grad + x * r.grad_pixel + channel);
  number = static_cast<int16_t>(r.write_begin * r.columns);
  for (int64_t y = r.write_begin; y < r.write_end; ++y) {
    uint16_t* to = r.to + y * r.to_row + x * r.columns * r.to_pixel + channel;
    for (int64_t i = 0; i < r.columns; ++i, to += r.to_pixel) store_bits(winner.share(grad, number++), to);
  }
}

// All channels from `channel` on, in the widest vectors that they fill.
template <int64_t kLanes>
void spread_channels(const ApartRow& r, int64_t x, int64_t channels, int64_t channel) {
  for (; channels - channel >= kLanes; channel += kLanes) spread_window<Keys<kLanes>>(r, x, channel);
  if constexpr (kLanes > 1)
    if (channel < channels) spread_channels<kLanes / 2>(r, x, channels, channel);
}

// Few channels, pixels side by side, windows two pixels wide: a vector takes several windows, the left pixels
// of all of them together, and the right ones.
template <int64_t kChannels>
struct WindowPairs {
  using K = Keys<32>;
  typedef int64_t Groups __attribute__((vector_size(64)));  // of four values
  static constexpr int64_t kWindows = 32 / kChannels;
  static constexpr int64_t kStep = kChannels / 4;

  // Group i of the left (side 0) or right pixels among those of two vectors; group i of a vector with both
  // sides (half 0 or 1 of them) among those of the left and the right ones.
  static constexpr int64_t apart(int64_t side, int64_t i) {
    return i / kStep * 2 * kStep + side * kStep + i % kStep;
  }
  static constexpr int64_t together(int64_t half, int64_t i) {
    const int64_t at = 8 * half + i;
    return at / (2 * kStep) * kStep + at % kStep + (at / kStep % 2 ? 8 : 0);
  }
  template <int64_t (*place)(int64_t)>
  static K pick(K first, K second) {
    Groups a, b, to;
    __builtin_memcpy(&a, &first, sizeof(a));
    __builtin_memcpy(&b, &second, sizeof(b));
#if defined(__clang__)
    to = __builtin_shufflevector(a, b, place(0), place(1), place(2), place(3), place(4), place(5), place(6),
                                 place(7));
#else
    const Groups places{place(0), place(1), place(2), place(3), place(4), place(5), place(6), place(7)};
    to = __builtin_shuffle(a, b, places);
#endif
    K bits;
    __builtin_memcpy(&bits, &to, sizeof(bits));
    return bits;
  }
  static constexpr int64_t left(int64_t i) { return apart(0, i); }
  static constexpr int64_t right(int64_t i) { return apart(1, i); }
  static constexpr int64_t low(int64_t i) { return together(0, i); }
  static constexpr int64_t high(int64_t i) { return together(1, i); }

  // kWindows windows from x on.
  static void spread(const ApartRow& r, int64_t x) {
    Winner<K> winner;
    for (int64_t y = 0; y < r.rows; ++y) {
      const uint16_t* p = r.input + y * r.input_row + 2 * x * kChannels;
      const K a = load_bits<K>(p), b = load_bits<K>(p + 32);
      winner.show(pick<left>(a, b), static_cast<int16_t>(2 * y));
      winner.show(pick<right>(a, b), static_cast<int16_t>(2 * y + 1));
    }
    const K grad = load_bits<K>(r.grad + x * kChannels);
    for (int64_t y = r.write_begin; y < r.write_end; ++y) {
      const K l = winner.share(grad, static_cast<int16_t>(2 * y)),
              g = winner.share(grad, static_cast<int16_t>(2 * y + 1));
      uint16_t* to = r.to + y * r.to_row + 2 * x * kChannels;
      store_bits(pick<low>(l, g), to);
      store_bits(pick<high>(l, g), to + 32);
    }
  }
};

// Windows from x on, as far as whole vectors go, where registers hold such.
template <int64_t kChannels, int64_t kLanes = kKeyWidth>
int64_t spread_pairs(const ApartRow& r, int64_t x, int64_t width) {
  if constexpr (kLanes >= 32) {
    using Pairs = WindowPairs<kChannels>;
    for (; x + Pairs::kWindows <= width; x += Pairs::kWindows) Pairs::spread(r, x);
  }
  return x;
}

void spread_row(const ApartRow& r, const PoolCall& p) {
  const bool dense = r.input_pixel == p.channels && r.grad_pixel == p.channels && r.to_pixel == p.channels;
  int64_t x = 0;
  if (dense && r.columns == 2 && p.channels == 8) x = spread_pairs<8>(r, x, p.width);
  if (dense && r.columns == 2 && p.channels == 16) x = spread_pairs<16>(r, x, p.width);
  for (; x < p.width; ++x) spread_channels<kKeyWidth>(r, x, p.channels, 0);
}

// Of columns [begin, in_width) of a row.
void clear_columns(const MaxPoolApart16Call& c, uint16_t* row, int64_t begin) {
  for (int64_t x = begin; x < c.window.in_width; ++x)
    __builtin_memset(row + x * c.grad_input.pixel, 0,
                     static_cast<__SIZE_TYPE__>(c.window.channels) * sizeof(uint16_t));
}

// Input rows [row_begin, row_end) over all images.
void max_pool_apart16_backward(const MaxPoolApart16Call& c, int64_t row_begin, int64_t row_end) {
  const PoolCall& p = c.window;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t image = row / p.in_height, y = row % p.in_height, window = y / p.kernel_h;
    uint16_t* const to = c.grad_input.data + image * c.grad_input.image;
    if (window >= p.height) {  // below the last window
      clear_columns(c, to + y * c.grad_input.row, 0);
      ++row;
      continue;
    }
    const int64_t top = window * p.kernel_h, left = row_end - row, rest = top + p.kernel_h - y;
    const int64_t count = rest < left ? rest : left;
    spread_row({c.input.data + image * c.input.image + top * c.input.row,
                c.grad.data + image * c.grad.image + window * c.grad.row, to + top * c.grad_input.row,
                c.input.row, c.input.pixel, c.grad.pixel, c.grad_input.row, c.grad_input.pixel, p.kernel_h,
                p.kernel_w, y - top, y - top + count},
               p);
    for (int64_t i = 0; i < count; ++i)
      clear_columns(c, to + (y + i) * c.grad_input.row, p.width * p.kernel_w);
    row += count;
  }
}

}  // namespace
