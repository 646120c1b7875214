// The gradients of max and average pooling, NHWC, vectors running over channels: the winner of every window
// is looked for again, the mean's gradient is shared out. Input rows are cleared and filled while they are in
// cache.
#pragma once
#include "cpu/kernels/pool.inl"
#include "cpu/kernels/values.inl"
#include "cpu/view16.h"

namespace {

// One output pixel whose gradient goes to the positions of its window in rows [write_begin, write_end). X:
// float, or bfloat16 bits.
template <class X>
struct WindowGradient {
  const X* input;  // the window's first position inside the image
  float* to;       // the same in the input's gradient
  const X* grad;
  int64_t input_row, input_pixel;  // from one position of the window to the next
  int64_t rows, columns, write_begin, write_end;
  float divisor;
};

// Adjacent channels as one value. Fewer than fill a vector register take its halves and quarters: a masked
// store would keep the next window's load waiting. `count`: kLanes, or fewer where not kWhole.
template <int64_t kLanes>
struct LanesOf {
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Number __attribute__((vector_size(kLanes * sizeof(int32_t))));

  template <bool kWhole>
  static Floats load(const float* p, int64_t count) {
    Floats v{};
    __builtin_memcpy(&v, p, bytes<kWhole>(p, count));
    return v;
  }
  template <bool kWhole>
  static Floats load(const uint16_t* p, int64_t count) {
    uint16_t from[kLanes] = {};
    __builtin_memcpy(from, p, bytes<kWhole>(p, count));
    uint32_t bits[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
    Floats v;
    __builtin_memcpy(&v, bits, sizeof(v));
    return v;
  }
  template <bool kWhole>
  static void store(Floats v, float* p, int64_t count) {
    __builtin_memcpy(p, &v, bytes<kWhole>(p, count));
  }

 private:
  template <bool kWhole, class T>
  static constexpr __SIZE_TYPE__ bytes(const T*, int64_t count) {
    return static_cast<__SIZE_TYPE__>(kWhole ? kLanes : count) * sizeof(T);
  }
};

// To the first largest value (a NaN beats all before it). kAdds: to what other windows have left there; else
// all of the window is written.
struct MaxGradient {
  static constexpr int64_t kLeastLanes = 4;

  template <bool kAdds, class X>
  static void spread(const PoolBackwardCall& c, const WindowGradient<X>& w) {
    spread_from<Vec::kWidth, kAdds>(c, w, 0);
  }

 private:
  template <int64_t kLanes, bool kAdds, class X>
  static void spread_from(const PoolBackwardCall& c, const WindowGradient<X>& w, int64_t channel) {
    for (; c.pool.channels - channel >= kLanes; channel += kLanes)
      spread_lanes<kLanes, true, kAdds>(c, w, channel, kLanes);
    if (channel == c.pool.channels) return;
    if constexpr (kLanes > kLeastLanes)
      spread_from<kLanes / 2, kAdds>(c, w, channel);
    else
      spread_lanes<kLanes, false, kAdds>(c, w, channel, c.pool.channels - channel);
  }

  template <int64_t kLanes, bool kWhole, bool kAdds, class X>
  static void spread_lanes(const PoolBackwardCall& c, const WindowGradient<X>& w, int64_t channel,
                           int64_t count) {
    using Lanes = LanesOf<kLanes>;
    auto best = typename Lanes::Floats{} - __builtin_inff();
    typename Lanes::Number winner{}, number{};
    for (int64_t y = 0; y < w.rows; ++y) {
      const X* p = w.input + y * w.input_row + channel;
      for (int64_t x = 0; x < w.columns; ++x, p += w.input_pixel, number += 1) {
        const auto v = Lanes::template load<kWhole>(p, count);
        const auto beats = (v > best) | (v != v);
        winner = beats ? number : winner;
        best = beats ? v : best;
      }
    }
    const auto g = Lanes::template load<kWhole>(w.grad + channel, count);
    const int64_t row_step = c.pool.dilation_h * c.grad_input.row,
                  pixel_step = c.pool.dilation_w * c.grad_input.pixel;
    number = typename Lanes::Number{} + static_cast<int32_t>(w.write_begin * w.columns);
    for (int64_t y = w.write_begin; y < w.write_end; ++y) {
      float* at = w.to + y * row_step + channel;
      for (int64_t x = 0; x < w.columns; ++x, at += pixel_step, number += 1) {
        const auto own = winner == number ? g : typename Lanes::Floats{};
        Lanes::template store<kWhole>(kAdds ? Lanes::template load<kWhole>(at, count) + own : own, at, count);
      }
    }
  }
};

// The same share to every position. `input` is not read.
struct MeanGradient {
  template <bool kAdds>
  static void spread(const PoolBackwardCall& c, const WindowGradient<float>& w) {
    const PoolCall& p = c.pool;
    for (int64_t channel = 0; channel < p.channels; channel += Vec::kWidth) {
      const int64_t lanes = p.channels - channel;
      const Vec share = load_lanes(w.grad + channel, lanes) / Vec::set1(w.divisor);
      for (int64_t y = w.write_begin; y < w.write_end; ++y)
        for (int64_t x = 0; x < w.columns; ++x) {
          float* at = w.to + y * c.grad_input.row + x * c.grad_input.pixel + channel;
          store_lanes(kAdds ? load_lanes(at, lanes) + share : share, at, lanes);
        }
    }
  }
};

template <class V>
struct ViewValue;
template <>
struct ViewValue<View> {
  using Type = float;
};
template <>
struct ViewValue<View16> {
  using Type = uint16_t;
};
template <class V>
using ValueOf = typename ViewValue<V>::Type;

// Input rows [begin, end) of one image, from all windows that reach into them. `in` and `out_grad`: instead
// of the call's own views. kApart: windows do not overlap.
template <class Gradient, bool kApart, class V>
void pool_image_backward(const PoolBackwardCall& c, const V& in, const V& out_grad, int64_t image,
                         int64_t begin, int64_t end) {
  const PoolCall& p = c.pool;
  const auto* const input = in.data + image * in.image;
  float* grad_input = c.grad_input.data + image * c.grad_input.image;
  int64_t cleared = begin;
  const bool covered = kApart && p.width * p.stride_w >= p.in_width;  // windows leave no column out
  const auto pass_to = [&](int64_t row) {
    if (covered && cleared < row) cleared = row;
  };
  const auto clear_to = [&](int64_t row) {
    for (; cleared < row; ++cleared)
      __builtin_memset(grad_input + cleared * c.grad_input.row, 0,
                       static_cast<__SIZE_TYPE__>(p.in_width * p.channels) * sizeof(float));
  };
  const int64_t reach = begin + p.pad_h - (p.kernel_h - 1) * p.dilation_h;
  for (int64_t y = reach > 0 ? (reach + p.stride_h - 1) / p.stride_h : 0; y < p.height; ++y) {
    const Span rows =
        span_of(y * p.stride_h - p.pad_h, p.kernel_h, p.dilation_h, p.in_height, p.padded_height - p.pad_h);
    if (rows.begin >= end) break;
    const int64_t below = begin - rows.begin;
    const int64_t write_begin = below > 0 ? (below + p.dilation_h - 1) / p.dilation_h : 0;
    const int64_t inside = (end - rows.begin + p.dilation_h - 1) / p.dilation_h;
    const int64_t write_end = inside < rows.count ? inside : rows.count;
    if (write_begin >= write_end) continue;
    const int64_t reached = rows.begin + (write_end - 1) * p.dilation_h + 1;
    pass_to(reached);
    clear_to(reached);
    const auto* grad = out_grad.data + image * out_grad.image + y * out_grad.row;
    for (int64_t x = 0; x < p.width; ++x, grad += out_grad.pixel) {
      const Span columns =
          span_of(x * p.stride_w - p.pad_w, p.kernel_w, p.dilation_w, p.in_width, p.padded_width - p.pad_w);
      Gradient::template spread<!kApart>(
          c, WindowGradient<ValueOf<V>>{
                 input + rows.begin * in.row + columns.begin * in.pixel,
                 grad_input + rows.begin * c.grad_input.row + columns.begin * c.grad_input.pixel, grad,
                 p.dilation_h * in.row, p.dilation_w * in.pixel, rows.count, columns.count, write_begin,
                 write_end, static_cast<float>(divisor_of(p, rows, columns))});
    }
  }
  clear_to(end);
}

template <class Gradient, class V>
void pool_backward_of(const PoolBackwardCall& c, const V& input, const V& grad, int64_t row_begin,
                      int64_t row_end) {
  const int64_t height = c.pool.in_height;
  const PoolCall& p = c.pool;
  const bool apart = p.stride_h == p.kernel_h && p.stride_w == p.kernel_w && p.pad_h == 0 && p.pad_w == 0 &&
                     p.dilation_h == 1 && p.dilation_w == 1;
  const auto run = apart ? pool_image_backward<Gradient, true, V> : pool_image_backward<Gradient, false, V>;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t begin = row % height, left = row_end - row;
    const int64_t end = height - begin < left ? height : begin + left;
    run(c, input, grad, row / height, begin, end);
    row += end - begin;
  }
}

template <class Gradient>
void pool_backward(const PoolBackwardCall& c, int64_t row_begin, int64_t row_end) {
  pool_backward_of<Gradient>(c, c.pool.input, c.grad, row_begin, row_end);
}

}  // namespace
