// Normalisation over the channels of a pixel, and over groups of channels of an image.
namespace {

inline float sum_of_lanes(Vec v) {
  float lanes[Vec::kWidth], sum = 0.0f;
  v.store(lanes);
  for (float lane : lanes) sum += lane;
  return sum;
}

// The last vector of `channels` channels: 1 where there is one, else 0.
inline Vec tail_mask(int64_t channels) {
  float mask[Vec::kWidth];
  const int64_t lanes = (channels - 1) % Vec::kWidth + 1;
  for (int64_t i = 0; i < Vec::kWidth; ++i) mask[i] = i < lanes ? 1.0f : 0.0f;
  return Vec::load(mask);
}

// The sum over channels of f(x), lanes beyond the last channel left out.
template <class F>
inline Vec channel_sum(const float* x, int64_t channels, Vec tail, F f) {
  Vec sum = Vec::zero();
  int64_t i = 0;
  for (; i + Vec::kWidth < channels; i += Vec::kWidth) sum = sum + f(Vec::load(x + i));
  return sum + f(Vec::load_first(x + i, channels - i)) * tail;
}

// (x - mean) * slope * weight + bias
inline void normalise_channels(const NormCall& c, const float* x, float* y, int64_t first, int64_t channels,
                               float mean, float slope) {
  const Vec m = Vec::set1(mean), s = Vec::set1(slope);
  for (int64_t i = 0; i < channels; i += Vec::kWidth) {
    const int64_t lanes = channels - i < Vec::kWidth ? channels - i : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    Vec v = (load(x + i) - m) * s;
    if (c.weight) v = v * load(c.weight + first + i);
    if (c.bias) v = v + load(c.bias + first + i);
    v = apply_short(c.activation, v);
    whole ? v.store(y + i) : v.store_first(y + i, lanes);
  }
}

void layer_norm(const NormCall& c, int64_t row_begin, int64_t row_end) {
  const Vec tail = tail_mask(c.channels);
  const auto count = static_cast<float>(c.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const float* in = c.input.data + n * c.input.image + y * c.input.row;
    float* const out = c.output.data + n * c.output.image + y * c.output.row;
    for (int64_t x = 0; x < c.width; ++x, in += c.input.pixel) {
      const float mean = sum_of_lanes(channel_sum(in, c.channels, tail, [](Vec v) { return v; })) / count;
      const Vec center = Vec::set1(mean);
      const float var = sum_of_lanes(channel_sum(in, c.channels, tail,
                                                 [&](Vec v) {
                                                   const Vec d = v - center;
                                                   return d * d;
                                                 })) /
                        count;
      normalise_channels(c, in, out + x * c.output.pixel, 0, c.channels, mean,
                         1.0f / __builtin_sqrtf(var + c.eps));
    }
    if (!in_registers(c.activation)) activate_pixels(out, c.output.pixel, c.width, c.channels, c.activation);
  }
}

// The mean of f over the pixels and channels of one group; rows are added up in double.
template <class F>
inline double group_mean(const NormCall& c, const float* image, int64_t channels, Vec tail, F f) {
  double sum = 0.0;
  for (int64_t y = 0; y < c.height; ++y) {
    const float* in = image + y * c.input.row;
    Vec row = Vec::zero();
    for (int64_t x = 0; x < c.width; ++x, in += c.input.pixel) row = row + channel_sum(in, channels, tail, f);
    sum += static_cast<double>(sum_of_lanes(row));
  }
  return sum / static_cast<double>(c.height * c.width * channels);
}

// Unit: a group of an image.
void group_norm(const NormCall& c, int64_t unit_begin, int64_t unit_end) {
  const int64_t channels = c.channels / c.groups;
  const Vec tail = tail_mask(channels);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t n = unit / c.groups, first = unit % c.groups * channels;
    const float* image = c.input.data + n * c.input.image + first;
    const auto mean = static_cast<float>(group_mean(c, image, channels, tail, [](Vec v) { return v; }));
    const Vec center = Vec::set1(mean);
    const auto var = static_cast<float>(group_mean(c, image, channels, tail, [&](Vec v) {
      const Vec d = v - center;
      return d * d;
    }));
    const float slope = 1.0f / __builtin_sqrtf(var + c.eps);
    for (int64_t y = 0; y < c.height; ++y) {
      const float* in = image + y * c.input.row;
      float* const out = c.output.data + n * c.output.image + y * c.output.row + first;
      for (int64_t x = 0; x < c.width; ++x)
        normalise_channels(c, in + x * c.input.pixel, out + x * c.output.pixel, first, channels, mean, slope);
      if (!in_registers(c.activation)) activate_pixels(out, c.output.pixel, c.width, channels, c.activation);
    }
  }
}

}  // namespace
