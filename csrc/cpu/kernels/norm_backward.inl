// Gradients of normalisation and activation: sums per channel, then the gradient of every value. Rows are
// float32 or bfloat16.
#include "cpu/kernels/values.inl"

namespace {

// What acts on some channels in front of the activation, where that is computed again.
template <class Cols>
struct BeforeActivation {
  template <class X, class Y>
  BeforeActivation(const NormBackwardRows<X, Y>& c, int64_t channel, int64_t lanes)
      : scale(c.scale ? Cols::load(c.scale + channel, lanes) : Cols::zero()),
        shift(c.scale ? Cols::load(c.again_shift + channel, lanes) : Cols::zero()) {}
  Cols scale, shift;
};

// What is read of a row.
template <class X, class Y>
struct NormBackwardRow {
  void fetch_all() const {
    fetch(c.grad, row * c.grad_stride + channel);
    if (!c.scale) fetch(c.output, row * c.output_stride + channel);
    fetch(c.input, row * c.input_stride + channel);
  }
  // In front of the activation.
  template <class Cols>
  Cols gradient(const BeforeActivation<Cols>& before, int64_t lanes) const {
    auto g = Cols::load(c.grad + row * c.grad_stride + channel, lanes);
    if (c.activation.kind == Activation::kNone) return g;
    if (c.scale) {
      const auto x = input<Cols>(lanes);
#pragma GCC unroll 2
      for (int j = 0; j < Cols::kVectors; ++j)
        g.v[j] = gradient_through(c.activation, x.v[j] * before.scale.v[j] + before.shift.v[j], g.v[j]);
      return g;
    }
    const auto y = Cols::load(c.output + row * c.output_stride + channel, lanes);
#pragma GCC unroll 2
    for (int j = 0; j < Cols::kVectors; ++j) g.v[j] = gradient_before(c.activation, y.v[j], g.v[j]);
    return g;
  }
  template <class Cols>
  Cols input(int64_t lanes) const {
    return Cols::load(c.input + row * c.input_stride + channel, lanes);
  }

  const NormBackwardRows<X, Y>& c;
  int64_t row, channel;
};

// Rows [begin, end) of some channels.
template <class Cols, class X, class Y>
inline void norm_backward_sum_columns(const NormBackwardRows<X, Y>& c, int64_t begin, int64_t end,
                                      int64_t ahead, int64_t channel, int64_t lanes, float* sum,
                                      float* product) {
  const BeforeActivation<Cols> before(c, channel, lanes);
  const auto mean = Cols::load(c.mean + channel, lanes);
  auto sums = Cols::load(sum + channel, lanes), products = Cols::load(product + channel, lanes);
  for (int64_t r = begin; r < end; ++r) {
    NormBackwardRow<X, Y>{c, r + ahead, channel}.fetch_all();
    const NormBackwardRow<X, Y> row{c, r, channel};
    const auto g = row.gradient(before, lanes), x = row.template input<Cols>(lanes);
#pragma GCC unroll 2
    for (int j = 0; j < Cols::kVectors; ++j) {
      sums.v[j] = sums.v[j] + g.v[j];
      products.v[j] = Vec::fma(g.v[j], x.v[j] - mean.v[j], products.v[j]);
    }
  }
  sums.store(sum + channel, lanes);
  products.store(product + channel, lanes);
}

template <class X, class Y>
void norm_backward_sums(const NormBackwardRows<X, Y>& c, int64_t rows, float* sum, float* product) {
  for_row_blocks(rows, c.channels, [&](int64_t begin, int64_t end, int64_t ahead) {
    for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
      norm_backward_sum_columns<decltype(columns)>(c, begin, end, ahead, channel, lanes, sum, product);
    });
  });
}

// Rows [begin, end) of some channels.
template <bool kTilted, class Cols, class X, class Y>
inline void norm_backward_columns(const NormBackwardRows<X, Y>& c, int64_t begin, int64_t end, int64_t ahead,
                                  int64_t channel, int64_t lanes) {
  const auto of_channels = [&](const float* p) { return p ? Cols::load(p + channel, lanes) : Cols::zero(); };
  const BeforeActivation<Cols> before(c, channel, lanes);
  const auto slope = of_channels(c.slope);
  const auto mean = kTilted ? of_channels(c.mean) : Cols::zero(),
             tilt = kTilted ? of_channels(c.tilt) : Cols::zero(),
             offset = kTilted ? of_channels(c.offset) : Cols::zero();
  for (int64_t r = begin; r < end; ++r) {
    NormBackwardRow<X, Y>{c, r + ahead, channel}.fetch_all();
    const NormBackwardRow<X, Y> row{c, r, channel};
    auto g = row.gradient(before, lanes);
    if (c.grad_residual) g.store(c.grad_residual + r * c.channels + channel, lanes);
    if (!c.grad_input) continue;
    if (c.slope)
#pragma GCC unroll 2
      for (int j = 0; j < Cols::kVectors; ++j) g.v[j] = g.v[j] * slope.v[j];
    if constexpr (kTilted) {
      const auto x = row.template input<Cols>(lanes);
#pragma GCC unroll 2
      for (int j = 0; j < Cols::kVectors; ++j)
        g.v[j] = Vec::fma(x.v[j] - mean.v[j], tilt.v[j], g.v[j] + offset.v[j]);
    }
    g.store(c.grad_input + r * c.channels + channel, lanes);
  }
}

template <class X, class Y>
void norm_backward(const NormBackwardRows<X, Y>& c, int64_t rows) {
  for_row_blocks(rows, c.channels, [&](int64_t begin, int64_t end, int64_t ahead) {
    for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
      using Cols = decltype(columns);
      c.tilt ? norm_backward_columns<true, Cols>(c, begin, end, ahead, channel, lanes)
             : norm_backward_columns<false, Cols>(c, begin, end, ahead, channel, lanes);
    });
  });
}

}  // namespace
