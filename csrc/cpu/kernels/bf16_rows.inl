// Between bfloat16 in memory and float32 in cache.
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
  for (int64_t p = 0; p < pixels; ++p) {
    const uint16_t* grad = c.grad.data + p * c.grad.step;
    const uint16_t* output = c.output.data ? c.output.data + p * c.output.step : nullptr;
    uint16_t* to = c.to.data + p * c.to.step;
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
      const int64_t lanes = c.channels - channel;
      const bool whole = lanes >= Vec::kWidth;
      auto load = [&](const uint16_t* x) { return whole ? Bf16::load(x) : Bf16::load_first(x, lanes); };
      Vec g = load(grad + channel);
      if (output) g = gradient_before(c.activation, load(output + channel), g);
      whole ? Bf16::store(g, to + channel) : Bf16::store_first(g, to + channel, lanes);
      if (!c.sums) continue;
      float* sum = c.sums + channel;
      whole ? (Vec::load(sum) + g).store(sum) : (Vec::load_first(sum, lanes) + g).store_first(sum, lanes);
    }
  }
}

}  // namespace
