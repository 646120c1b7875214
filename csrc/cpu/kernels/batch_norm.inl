// Per-channel sums and the normalising pass, over rows of adjacent channels.
namespace {

void column_sum(const float* x, int64_t stride, int64_t rows, int64_t channels, const float* mean,
                float* sum) {
  for (int64_t channel = 0; channel < channels; channel += Vec::kWidth) {
    const int64_t lanes = channels - channel < Vec::kWidth ? channels - channel : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    const Vec center = mean ? load(mean + channel) : Vec::zero();
    Vec acc = load(sum + channel);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec d = load(x + r * stride + channel) - center;
      acc = mean ? Vec::fma(d, d, acc) : acc + d;
    }
    whole ? acc.store(sum + channel) : acc.store_first(sum + channel, lanes);
  }
}

void affine(const AffineCall& c, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = c.input + r * c.input_stride;
    const float* res = c.residual ? c.residual + r * c.residual_stride : nullptr;
    float* out = c.output + r * c.output_stride;
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
      const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
      const bool whole = lanes == Vec::kWidth;
      auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
      Vec v = load(in + channel);
      if (c.scale) v = v * load(c.scale + channel);
      if (c.shift) v = v + load(c.shift + channel);
      if (res) v = v + load(res + channel);
      v = apply(c.activation, v);
      whole ? v.store(out + channel) : v.store_first(out + channel, lanes);
    }
  }
}

}  // namespace
