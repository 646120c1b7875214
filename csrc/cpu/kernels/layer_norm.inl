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

// A group of many channels, whose vectors are whole: one group after the other.
inline void norm_of_group(const NormCall& c, int64_t n, int64_t first, int64_t channels) {
  const Vec tail = tail_mask(channels);
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

// Channels whose statistics are kept at once, and from how many on a group is worked on by itself.
constexpr int64_t kNormChannels = 512, kManyChannels = 128;
// So many pixels are added up in float before they are added in double.
constexpr int64_t kFloatPixels = 128;

// Adds the sums of f(x, first channel) over an image's pixels for K vectors of channels to `sums`, U pixels
// at once; `lanes`: of the last vector.
template <int K, int U, class F>
inline void add_vector_sums(const NormCall& c, const float* image, int64_t lanes, double* sums, F f) {
  const bool whole = lanes == Vec::kWidth;
  Vec total[U][K];
  auto clear = [&] {
    for (int u = 0; u < U; ++u)
      for (int k = 0; k < K; ++k) total[u][k] = Vec::zero();
  };
  auto pixel = [&](const float* in, Vec* to) {
    for (int k = 0; k < K; ++k) {
      const float* at = in + k * Vec::kWidth;
      to[k] = to[k] + f(whole || k + 1 < K ? Vec::load(at) : Vec::load_first(at, lanes), k * Vec::kWidth);
    }
  };
  auto flush = [&] {
    for (int k = 0; k < K; ++k) {
      float values[Vec::kWidth];
      for (int u = 1; u < U; ++u) total[0][k] = total[0][k] + total[u][k];
      total[0][k].store(values);
      const int64_t count = k + 1 < K ? Vec::kWidth : lanes;
      for (int64_t i = 0; i < count; ++i) sums[k * Vec::kWidth + i] += static_cast<double>(values[i]);
    }
    clear();
  };
  clear();
  int64_t pixels = 0;
  for (int64_t y = 0; y < c.height; ++y) {
    const float* in = image + y * c.input.row;
    int64_t x = 0;
    for (; x + U <= c.width; x += U)
      for (int u = 0; u < U; ++u) pixel(in + (x + u) * c.input.pixel, total[u]);
    for (; x < c.width; ++x) pixel(in + x * c.input.pixel, total[0]);
    if ((pixels += c.width) < kFloatPixels) continue;
    flush();
    pixels = 0;
  }
  flush();
}

// The sums of f(x, first channel) over an image's pixels, channel by channel.
template <class F>
inline void channel_sums(const NormCall& c, const float* image, int64_t channels, double* sums, F f) {
  for (int64_t i = 0; i < channels; ++i) sums[i] = 0.0;
  int64_t i = 0;
  auto at = [&](Vec v, int64_t k) { return f(v, i + k); };
  for (; i + 4 * Vec::kWidth <= channels; i += 4 * Vec::kWidth)
    add_vector_sums<4, 1>(c, image + i, Vec::kWidth, sums + i, at);
  for (; i < channels; i += Vec::kWidth) {
    const int64_t lanes = channels - i < Vec::kWidth ? channels - i : Vec::kWidth;
    add_vector_sums<1, 4>(c, image + i, lanes, sums + i, at);
  }
}

// The mean of every group's sums, for each of its channels.
inline void means_of_groups(const double* sums, int64_t channels, int64_t group, double pixels,
                            float* means) {
  for (int64_t i = 0; i < channels; i += group) {
    double sum = 0.0;
    for (int64_t k = 0; k < group; ++k) sum += sums[i + k];
    for (int64_t k = 0; k < group; ++k)
      means[i + k] = static_cast<float>(sum / (pixels * static_cast<double>(group)));
  }
}

// act((x - mean) * scale + shift), each channel's own.
template <class Act>
inline void normalise_image(const NormCall& c, const float* image, float* to, int64_t channels,
                            const float* means, const float* scales, const float* shifts, Act act) {
  for (int64_t y = 0; y < c.height; ++y) {
    const float* row = image + y * c.input.row;
    float* const out = to + y * c.output.row;
    for (int64_t i = 0; i < channels; i += Vec::kWidth) {
      const int64_t lanes = channels - i < Vec::kWidth ? channels - i : Vec::kWidth;
      const Vec mean = Vec::load(means + i), scale = Vec::load(scales + i), shift = Vec::load(shifts + i);
      auto value = [&](Vec v) { return act(Vec::fma(v - mean, scale, shift)); };
      if (lanes == Vec::kWidth)
        for (int64_t x = 0; x < c.width; ++x)
          value(Vec::load(row + x * c.input.pixel + i)).store(out + x * c.output.pixel + i);
      else
        for (int64_t x = 0; x < c.width; ++x)
          value(Vec::load_first(row + x * c.input.pixel + i, lanes))
              .store_first(out + x * c.output.pixel + i, lanes);
    }
    if (!in_registers(c.activation) && c.activation.kind != Activation::kLeakyReLU)
      activate_pixels(out, c.output.pixel, c.width, channels, c.activation);
  }
}

// Groups of few channels of an image, together. Pixels of less than a vector that lie side by side are taken
// kWidth at a time, as pixels of so many times their channels; the last ones of a row are on their own.
struct NormOfGroups {
  NormCall merged, rest;
  int64_t channels, group, pixels_merged, lanes;
  const float* image;
  float* to;
  double sums[kNormChannels];
  float means[kNormChannels + Vec::kWidth], scales[kNormChannels + Vec::kWidth];
  float shifts[kNormChannels + Vec::kWidth];

  NormOfGroups(const NormCall& c, int64_t n, int64_t first, int64_t channels, int64_t group)
      : merged(c), rest(c), channels(channels), group(group) {
    image = c.input.data + n * c.input.image + first;
    to = c.output.data + n * c.output.image + first;
    const bool narrow = channels < Vec::kWidth && c.input.pixel == channels && c.output.pixel == channels;
    pixels_merged = narrow ? Vec::kWidth : 1;
    lanes = pixels_merged * channels;
    if (narrow && c.input.row == c.width * channels && c.output.row == c.width * channels) {
      merged.width = c.width * c.height;
      merged.height = rest.height = 1;
    }
    rest.width = merged.width % pixels_merged;
    merged.width /= pixels_merged;
    merged.input.pixel *= pixels_merged;
    merged.output.pixel *= pixels_merged;
  }

  int64_t behind_merged() const { return merged.width * lanes; }

  // Of f(x, channel) over all pixels: the means of the groups, for every lane.
  template <class F>
  void means_of(F f, float* means_to) {
    channel_sums(merged, image, lanes, sums, f);
    for (int64_t i = channels; i < lanes; ++i) sums[i % channels] += sums[i];
    if (rest.width > 0) {
      double more[Vec::kWidth];
      channel_sums(rest, image + behind_merged(), channels, more, f);
      for (int64_t i = 0; i < channels; ++i) sums[i] += more[i];
    }
    const int64_t pixels = merged.height * (merged.width * pixels_merged + rest.width);
    means_of_groups(sums, channels, group, static_cast<double>(pixels), means_to);
    for (int64_t i = channels; i < lanes; ++i) means_to[i] = means_to[i - channels];
  }

  void run(const float* weight, const float* bias) {
    for (int64_t i = lanes; i < lanes + Vec::kWidth; ++i) means[i] = scales[i] = shifts[i] = 0.0f;
    means_of([](Vec v, int64_t) { return v; }, means);
    means_of(
        [&](Vec v, int64_t i) {
          const Vec d = v - Vec::load(means + i);
          return d * d;
        },
        scales);
    for (int64_t i = 0; i < lanes; ++i) {
      const float slope = 1.0f / __builtin_sqrtf(scales[i] + merged.eps);
      scales[i] = weight ? slope * weight[i % channels] : slope;
      shifts[i] = bias ? bias[i % channels] : 0.0f;
    }
    if (merged.activation.kind == Activation::kLeakyReLU) {
      const Vec a = Vec::set1(merged.activation.a);
      normalise([&](Vec v) { return where_positive(v, v, v * a); });
    } else {
      normalise([&](Vec v) { return apply_short(merged.activation, v); });
    }
  }

  template <class Act>
  void normalise(Act act) {
    normalise_image(merged, image, to, lanes, means, scales, shifts, act);
    if (rest.width > 0)
      normalise_image(rest, image + behind_merged(), to + behind_merged(), channels, means, scales, shifts,
                      act);
  }
};

// Unit: a group of an image.
void group_norm(const NormCall& c, int64_t unit_begin, int64_t unit_end) {
  const int64_t group = c.channels / c.groups;
  for (int64_t unit = unit_begin; unit < unit_end;) {
    const int64_t n = unit / c.groups, g = unit % c.groups;
    int64_t count = group < kManyChannels ? kNormChannels / group : 1;
    if (count > c.groups - g) count = c.groups - g;
    if (count > unit_end - unit) count = unit_end - unit;
    if (group < kManyChannels)
      NormOfGroups(c, n, g * group, count * group, group)
          .run(c.weight ? c.weight + g * group : nullptr, c.bias ? c.bias + g * group : nullptr);
    else
      norm_of_group(c, n, g * group, group);
    unit += count;
  }
}

}  // namespace
