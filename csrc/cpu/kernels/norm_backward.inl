// Gradients of normalisation and activation: sums per channel, then the gradient of every value.
namespace {

void norm_backward_sums(const NormBackwardCall& c, int64_t rows, float* sum, float* product) {
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    const Vec mean = load(c.mean + channel);
    Vec sums = load(sum + channel), products = load(product + channel);
    for (int64_t r = 0; r < rows; ++r) {
      Vec g = load(c.grad + r * c.grad_stride + channel);
      if (c.activation.kind != Activation::kNone)
        g = gradient_before(c.activation, load(c.output + r * c.output_stride + channel), g);
      sums = sums + g;
      products = Vec::fma(g, load(c.input + r * c.input_stride + channel) - mean, products);
    }
    sums.store_first(sum + channel, lanes);
    products.store_first(product + channel, lanes);
  }
}

void norm_backward(const NormBackwardCall& c, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
      const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
      const bool whole = lanes == Vec::kWidth;
      auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
      auto store = [&](Vec v, float* rows_of) {
        float* p = rows_of + r * c.channels + channel;
        whole ? v.store(p) : v.store_first(p, lanes);
      };
      Vec g = load(c.grad + r * c.grad_stride + channel);
      if (c.activation.kind != Activation::kNone)
        g = gradient_before(c.activation, load(c.output + r * c.output_stride + channel), g);
      if (c.grad_residual) store(g, c.grad_residual);
      if (!c.grad_input) continue;
      Vec v = g * load(c.slope + channel);
      if (c.tilt) {
        const Vec d = load(c.input + r * c.input_stride + channel) - load(c.mean + channel);
        v = Vec::fma(d, load(c.tilt + channel), v + load(c.offset + channel));
      }
      store(v, c.grad_input);
    }
}

}  // namespace
