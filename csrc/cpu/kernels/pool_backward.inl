// The gradients of max and average pooling, NHWC, vectors running over channels: the winner of every window
// is looked for again, the mean's gradient is shared out. Input rows are cleared and filled while they are in
// cache.
#pragma once
#include "cpu/kernels/pool.inl"

namespace {

// One output pixel whose gradient goes to the positions of its window in rows [write_begin, write_end).
struct WindowGradient {
  const float* input;  // the window's first position inside the image
  float* to;           // the same in the input's gradient
  const float* grad;
  int64_t rows, columns, write_begin, write_end;
  float divisor;
};

// To the first largest value (a NaN beats all before it). kAdds: to what other windows have left there; else
// all of the window is written.
struct MaxGradient {
  template <bool kAdds>
  static void spread(const PoolBackwardCall& c, const WindowGradient& w) {
    const PoolCall& p = c.pool;
    for (int64_t channel = 0; channel < p.channels; channel += Vec::kWidth) {
      const int64_t left = p.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
      Vec best = MaxReduce::start(), winner = Vec::zero();
      float number = 0;
      for (int64_t y = 0; y < w.rows; ++y)
        for (int64_t x = 0; x < w.columns; ++x, ++number) {
          const Vec v = Vec::load_first(
              w.input + y * p.dilation_h * p.input.row + x * p.dilation_w * p.input.pixel + channel, lanes);
          winner = Vec::where_beats(v, best, Vec::set1(number), winner);
          best = Vec::where_beats(v, best, v, best);
        }
      const Vec g = Vec::load_first(w.grad + channel, lanes);
      number = static_cast<float>(w.write_begin * w.columns);
      for (int64_t y = w.write_begin; y < w.write_end; ++y)
        for (int64_t x = 0; x < w.columns; ++x, ++number) {
          float* at =
              w.to + y * p.dilation_h * c.grad_input.row + x * p.dilation_w * c.grad_input.pixel + channel;
          const Vec own = Vec::where_equal(winner, Vec::set1(number), g);
          (kAdds ? Vec::load_first(at, lanes) + own : own).store_first(at, lanes);
        }
    }
  }
};

// The same share to every position. `input` is not read.
struct MeanGradient {
  template <bool kAdds>
  static void spread(const PoolBackwardCall& c, const WindowGradient& w) {
    const PoolCall& p = c.pool;
    for (int64_t channel = 0; channel < p.channels; channel += Vec::kWidth) {
      const int64_t left = p.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
      const Vec share = Vec::load_first(w.grad + channel, lanes) / Vec::set1(w.divisor);
      for (int64_t y = w.write_begin; y < w.write_end; ++y)
        for (int64_t x = 0; x < w.columns; ++x) {
          float* at = w.to + y * c.grad_input.row + x * c.grad_input.pixel + channel;
          (kAdds ? Vec::load_first(at, lanes) + share : share).store_first(at, lanes);
        }
    }
  }
};

// Input rows [begin, end) of one image, from all windows that reach into them. kApart: windows do not
// overlap.
template <class Gradient, bool kApart>
void pool_image_backward(const PoolBackwardCall& c, int64_t image, int64_t begin, int64_t end) {
  const PoolCall& p = c.pool;
  const float* input = p.input.data + image * p.input.image;
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
    const float* grad = c.grad.data + image * c.grad.image + y * c.grad.row;
    for (int64_t x = 0; x < p.width; ++x, grad += c.grad.pixel) {
      const Span columns =
          span_of(x * p.stride_w - p.pad_w, p.kernel_w, p.dilation_w, p.in_width, p.padded_width - p.pad_w);
      Gradient::template spread<!kApart>(
          c,
          {input + rows.begin * p.input.row + columns.begin * p.input.pixel,
           grad_input + rows.begin * c.grad_input.row + columns.begin * c.grad_input.pixel, grad, rows.count,
           columns.count, write_begin, write_end, static_cast<float>(divisor_of(p, rows, columns))});
    }
  }
  clear_to(end);
}

template <class Gradient>
void pool_backward(const PoolBackwardCall& c, int64_t row_begin, int64_t row_end) {
  const int64_t height = c.pool.in_height;
  const PoolCall& p = c.pool;
  const bool apart = p.stride_h == p.kernel_h && p.stride_w == p.kernel_w && p.pad_h == 0 && p.pad_w == 0 &&
                     p.dilation_h == 1 && p.dilation_w == 1;
  const auto run = apart ? pool_image_backward<Gradient, true> : pool_image_backward<Gradient, false>;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t begin = row % height, left = row_end - row;
    const int64_t end = height - begin < left ? height : begin + left;
    run(c, row / height, begin, end);
    row += end - begin;
  }
}

}  // namespace
