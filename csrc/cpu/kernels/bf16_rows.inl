// Between bfloat16 in memory and float32 in cache.
#include "cpu/kernels/values16.inl"

namespace {

void widen(PixelRun<const uint16_t> from, PixelRun<float> to, int64_t pixels, int64_t channels) {
  if (from.step == channels && to.step == channels) {
    channels *= pixels;
    pixels = 1;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const uint16_t* x = from.data + p * from.step;
    float* y = to.data + p * to.step;
    int64_t c = 0;
    for (; c + Vec::kWidth <= channels; c += Vec::kWidth) Bf16::load(x + c).store(y + c);
    if (c < channels) Bf16::load_first(x + c, channels - c).store_first(y + c, channels - c);
  }
}

void narrow(PixelRun<const float> from, PixelRun<uint16_t> to, int64_t pixels, int64_t channels) {
  if (from.step == channels && to.step == channels) {
    channels *= pixels;
    pixels = 1;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = from.data + p * from.step;
    uint16_t* y = to.data + p * to.step;
    int64_t c = 0;
    for (; c + 2 * Vec::kWidth <= channels; c += 2 * Vec::kWidth)
      Bf16::store_two(Vec::load(x + c), Vec::load(x + c + Vec::kWidth), y + c);
    for (; c + Vec::kWidth <= channels; c += Vec::kWidth) Bf16::store(Vec::load(x + c), y + c);
    if (c < channels) Bf16::store_first(Vec::load_first(x + c, channels - c), y + c, channels - c);
  }
}

void activation_backward(const ActivationBackward16& c, int64_t pixels) {
  for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
    using Cols = decltype(columns);
    auto sums = c.sums ? Cols::load(c.sums + channel, lanes) : Cols::zero();
    for (int64_t p = 0; p < pixels; ++p) {
      // The next row's: hardware does not foresee it where pixels are longer than two vectors.
      fetch(c.grad.data, (p + pixels) * c.grad.step + channel);
      fetch(c.output.data, (p + pixels) * c.output.step + channel);
      auto g = Cols::load(c.grad.data + p * c.grad.step + channel, lanes);
      if (c.output.data) {
        const auto y = Cols::load(c.output.data + p * c.output.step + channel, lanes);
#pragma GCC unroll 2
        for (int j = 0; j < Cols::kVectors; ++j) g.v[j] = gradient_before(c.activation, y.v[j], g.v[j]);
      }
#pragma GCC unroll 2
      for (int j = 0; j < Cols::kVectors; ++j) sums.v[j] = sums.v[j] + g.v[j];
      g.store(c.to.data + p * c.to.step + channel, lanes);
    }
    if (c.sums) sums.store(c.sums + channel, lanes);
  });
}

}  // namespace
