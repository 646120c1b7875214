// The gradient of batch norm and activation as a prologue: one pass over the pixels gives what goes straight
// to the input and the sums that the batch's own statistics need.
#include "cpu/kernels/values.inl"

namespace {

// Rows [begin, end) of some channels.
template <class Cols, class X, class D>
inline void bn_act_backward_columns(const BnActBackwardRows<X, D>& c, int64_t begin, int64_t end,
                                    int64_t ahead, int64_t channel, int64_t lanes) {
  const auto scale = Cols::load(c.scale + channel, lanes), shift = Cols::load(c.shift + channel, lanes),
             mean = Cols::load(c.mean + channel, lanes);
  auto sum = Cols::load(c.sum + channel, lanes), product = Cols::load(c.product + channel, lanes);
  for (int64_t r = begin; r < end; ++r) {
    fetch(c.grad_input, (r + ahead) * c.grad_input_stride + channel);
    fetch(c.input, (r + ahead) * c.input_stride + channel);
    float* const to = c.grad_input + r * c.grad_input_stride + channel;
    const auto x = Cols::load(c.input + r * c.input_stride + channel, lanes),
               da = Cols::load(c.grad_activated + r * c.grad_activated_stride + channel, lanes);
    auto grad = Cols::load(to, lanes);
#pragma GCC unroll 2
    for (int j = 0; j < Cols::kVectors; ++j) {
      const Vec a = apply(c.activation, x.v[j] * scale.v[j] + shift.v[j]);
      const Vec dz = gradient_before(c.activation, a, da.v[j]);
      grad.v[j] = Vec::fma(dz, scale.v[j], grad.v[j]);
      sum.v[j] = sum.v[j] + dz;
      product.v[j] = Vec::fma(dz, x.v[j] - mean.v[j], product.v[j]);
    }
    grad.store(to, lanes);
  }
  sum.store(c.sum + channel, lanes);
  product.store(c.product + channel, lanes);
}

template <class X, class D>
void bn_act_backward(const BnActBackwardRows<X, D>& c, int64_t rows) {
  for_row_blocks(rows, c.channels, [&](int64_t begin, int64_t end, int64_t ahead) {
    for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
      bn_act_backward_columns<decltype(columns)>(c, begin, end, ahead, channel, lanes);
    });
  });
}

}  // namespace
