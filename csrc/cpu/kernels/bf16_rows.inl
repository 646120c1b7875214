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

}  // namespace
