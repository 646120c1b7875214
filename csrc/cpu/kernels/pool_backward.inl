// The gradients of max and average pooling, NHWC, vectors running over channels: the winner of every window
// is looked for again, the mean's gradient is shared out. Input rows are cleared and filled while they are in
// cache.
#pragma once
#include "cpu/kernels/lanes.inl"
#include "cpu/kernels/pool.inl"
#include "cpu/view16.h"

namespace {

// One output pixel whose gradient goes to the positions of its window in rows [write_begin, write_end). X:
// float, or bfloat16 bits.
template <class X>
struct WindowGradient {
  const X* input;  // the window's first position inside the image
  float* to;       // the same in the input's gradient
  const X* grad;
  int64_t input_row, input_pixel, to_row, to_pixel;  // from one position of the window to the next
  int64_t rows, columns, write_begin, write_end;
  float divisor;
};

// To the first largest value (a NaN beats all before it). kAdds: to what other windows have left there; else
// all of the window is written.
struct MaxGradient {
  template <bool kAdds, class X>
  static void spread(const PoolBackwardCall& c, const WindowGradient<X>& w) {
    for_lanes<Vec::kWidth>(c.pool.channels, 0,
                           [&](auto lanes, int64_t channel) { spread_lanes<kAdds>(w, lanes, channel); });
  }

 private:
  template <bool kAdds, class X, class L>
  static void spread_lanes(const WindowGradient<X>& w, L lanes, int64_t channel) {
    auto best = typename L::Floats{} - __builtin_inff();
    typename L::Numbers winner{}, number{};
    for (int64_t y = 0; y < w.rows; ++y) {
      const X* p = w.input + y * w.input_row + channel;
      for (int64_t x = 0; x < w.columns; ++x, p += w.input_pixel, number += 1) {
        const auto v = lanes.load(p);
        const auto beats = (v > best) | (v != v);
        winner = beats ? number : winner;
        best = beats ? v : best;
      }
    }
    const auto g = lanes.load(w.grad + channel);
    number = typename L::Numbers{} + static_cast<int32_t>(w.write_begin * w.columns);
    for (int64_t y = w.write_begin; y < w.write_end; ++y) {
      float* at = w.to + y * w.to_row + channel;
      for (int64_t x = 0; x < w.columns; ++x, at += w.to_pixel, number += 1) {
        const auto own = winner == number ? g : typename L::Floats{};
        lanes.store(kAdds ? lanes.load(at) + own : own, at);
      }
    }
  }
};

// The same share to every position. `input` is not read.
struct MeanGradient {
  template <bool kAdds>
  static void spread(const PoolBackwardCall& c, const WindowGradient<float>& w) {
    for_lanes<Vec::kWidth>(c.pool.channels, 0, [&](auto lanes, int64_t channel) {
      const auto share = lanes.load(w.grad + channel) / w.divisor;
      for (int64_t y = w.write_begin; y < w.write_end; ++y) {
        float* at = w.to + y * w.to_row + channel;
        for (int64_t x = 0; x < w.columns; ++x, at += w.to_pixel)
          lanes.store(kAdds ? lanes.load(at) + share : share, at);
      }
    });
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
                 p.dilation_h * in.row, p.dilation_w * in.pixel, p.dilation_h * c.grad_input.row,
                 p.dilation_w * c.grad_input.pixel, rows.count, columns.count, write_begin, write_end,
                 static_cast<float>(divisor_of(p, rows, columns))});
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
