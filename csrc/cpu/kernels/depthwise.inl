// Depthwise convolution, NHWC: vectors run over channels, four output pixels at a time share the weights.
namespace {

template <int R>
void depthwise_pixels(const DepthwiseCall& c, const float* x, float* y, const float* residual,
                      int64_t channel, int64_t lanes) {
  const bool whole = lanes == Vec::kWidth;
  auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
  Vec acc[R];
  for (int r = 0; r < R; ++r) acc[r] = Vec::zero();
  for (int64_t t = 0; t < c.taps; ++t) {
    const Vec w = load(c.weight + t * c.channels + channel);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      acc[r] = Vec::fma(load(x + c.tap[t] + r * c.stride_w * c.input.pixel + channel), w, acc[r]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (c.scale) acc[r] = acc[r] * load(c.scale + channel);
    if (c.shift) acc[r] = acc[r] + load(c.shift + channel);
    if (residual) acc[r] = acc[r] + load(residual + r * c.residual.pixel + channel);
    acc[r] = apply_short(c.activation, acc[r]);
    float* out = y + r * c.output.pixel + channel;
    whole ? acc[r].store(out) : acc[r].store_first(out, lanes);
  }
}

void depthwise(const DepthwiseCall& c, int64_t row_begin, int64_t row_end) {
  constexpr int kPixels = 4;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const float* in = c.input.data + n * c.input.image + y * c.stride_h * c.input.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    const float* res =
        c.residual.data ? c.residual.data + n * c.residual.image + y * c.residual.row : nullptr;
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
      const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
      int64_t x = 0;
      auto at = [&](const float* p, int64_t step) { return p ? p + x * step : nullptr; };
      for (; x + kPixels <= c.width; x += kPixels)
        depthwise_pixels<kPixels>(c, at(in, c.stride_w * c.input.pixel), out + x * c.output.pixel,
                                  at(res, c.residual.pixel), channel, lanes);
      for (; x < c.width; ++x)
        depthwise_pixels<1>(c, at(in, c.stride_w * c.input.pixel), out + x * c.output.pixel,
                            at(res, c.residual.pixel), channel, lanes);
    }
    if (!in_registers(c.activation)) activate_pixels(out, c.output.pixel, c.width, c.channels, c.activation);
  }
}

}  // namespace
