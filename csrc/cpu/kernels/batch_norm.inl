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

// Rows of this many values stay in the first-level cache.
constexpr int64_t kAffineFloats = 2048;

inline void affine_row(const AffineCall& c, int64_t r) {
  const float* in = c.input + r * c.input_stride;
  const float* factor = c.factor ? c.factor + r * c.factor_stride : nullptr;
  const float* res = c.residual ? c.residual + r * c.residual_stride : nullptr;
  float* out = c.output + r * c.output_stride;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    Vec v = load(in + channel);
    if (c.scale) v = v * load(c.scale + channel);
    if (c.shift) v = v + load(c.shift + channel);
    if (factor) v = v * load(factor + channel);
    if (res) v = v + load(res + channel);
    v = apply_short(c.activation, v);
    whole ? v.store(out + channel) : v.store_first(out + channel, lanes);
  }
}

void affine(const AffineCall& c, int64_t rows) {
  const bool behind = !in_registers(c.activation);
  const int64_t block = behind ? (kAffineFloats + c.channels - 1) / c.channels : rows;
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t end = rows - begin < block ? rows : begin + block;
    for (int64_t r = begin; r < end; ++r) affine_row(c, r);
    if (behind)
      activate_pixels(c.output + begin * c.output_stride, c.output_stride, end - begin, c.channels,
                      c.activation);
  }
}

}  // namespace
