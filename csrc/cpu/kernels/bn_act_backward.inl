// The gradient of batch norm and activation as a prologue: one pass over the pixels gives what goes straight
// to the input and the sums that the batch's own statistics need.
namespace {

void bn_act_backward(const BnActBackwardCall& c, int64_t rows) {
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    auto store = [&](Vec v, float* p) { whole ? v.store(p) : v.store_first(p, lanes); };
    const Vec scale = load(c.scale + channel), shift = load(c.shift + channel), mean = load(c.mean + channel);
    Vec sum = load(c.sum + channel), product = load(c.product + channel);
    for (int64_t r = 0; r < rows; ++r) {
      float* grad_input = c.grad_input + r * c.grad_input_stride + channel;
      const Vec x = load(c.input + r * c.input_stride + channel);
      const Vec dz = gradient_before(c.activation, apply(c.activation, x * scale + shift),
                                     load(c.grad_activated + r * c.grad_activated_stride + channel));
      store(Vec::fma(dz, scale, load(grad_input)), grad_input);
      sum = sum + dz;
      product = Vec::fma(dz, x - mean, product);
    }
    store(sum, c.sum + channel);
    store(product, c.product + channel);
  }
}

}  // namespace
