// Images of other sizes: windows that adapt, whole-image means, bilinear interpolation; and channels in
// another order. Vectors run over channels.
namespace {

// Output position i of `out` covers the input's positions [i * in / out, ceil((i + 1) * in / out)).
inline Span adaptive_span(int64_t i, int64_t in, int64_t out) {
  const int64_t begin = i * in / out;
  return {begin, ((i + 1) * in + out - 1) / out - begin, 0};
}

template <class Reduce>
void adaptive_pool(const PoolCall& c, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const Span rows = adaptive_span(y, c.in_height, c.height);
    const float* image_row = c.input.data + n * c.input.image + rows.begin * c.input.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    for (int64_t x = 0; x < c.width; ++x, out += c.output.pixel) {
      const Span columns = adaptive_span(x, c.in_width, c.width);
      pool_pixel<Reduce, false>(c, image_row + columns.begin * c.input.pixel, rows.count, columns.count,
                                static_cast<float>(rows.count * columns.count), out);
    }
  }
}

// NV vectors of channels, the last of which has `lanes`. Rows are added up one by one, so that errors grow
// with the sides of an image and not with its area.
template <int NV, bool kPrologue>
inline void mean_of_image(const PoolCall& c, const float* image, int64_t channel, int64_t lanes, float* out) {
  const auto load = [&](const float* p, int j) {
    return j == NV - 1 ? Vec::load_first(p + j * Vec::kWidth, lanes) : Vec::load(p + j * Vec::kWidth);
  };
  Vec sum[NV], scale[NV], shift[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    sum[j] = Vec::zero();
    scale[j] = kPrologue ? load(c.prologue.scale + channel, j) : Vec::zero();
    shift[j] = kPrologue ? load(c.prologue.shift + channel, j) : Vec::zero();
  }
  for (int64_t y = 0; y < c.in_height; ++y) {
    const float* p = image + y * c.input.row + channel;
    Vec row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) row[j] = Vec::zero();
    for (int64_t x = 0; x < c.in_width; ++x, p += c.input.pixel)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j)
        row[j] = row[j] + (kPrologue ? apply(c.prologue.activation, Vec::fma(load(p, j), scale[j], shift[j]))
                                     : load(p, j));
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sum[j] = sum[j] + row[j];
  }
  const int64_t pixels = c.divisor_override ? c.divisor_override : c.in_height * c.in_width;
  const Vec count = Vec::set1(static_cast<float>(pixels));
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    const Vec mean = sum[j] / count;
    float* to = out + channel + j * Vec::kWidth;
    j == NV - 1 ? mean.store_first(to, lanes) : mean.store(to);
  }
}

template <bool kPrologue>
void mean_channels(const PoolCall& c, int64_t image, int64_t channel, int64_t end) {
  const float* in = c.input.data + image * c.input.image;
  float* out = c.output.data + image * c.output.image;
  for (; end - channel >= 4 * Vec::kWidth; channel += 4 * Vec::kWidth)
    mean_of_image<4, kPrologue>(c, in, channel, Vec::kWidth, out);
  for (; channel < end; channel += Vec::kWidth)
    mean_of_image<1, kPrologue>(c, in, channel, end - channel < Vec::kWidth ? end - channel : Vec::kWidth,
                                out);
}

void image_mean(const PoolCall& c, int64_t image, int64_t channel_begin, int64_t channel_end) {
  c.prologue.scale ? mean_channels<true>(c, image, channel_begin, channel_end)
                   : mean_channels<false>(c, image, channel_begin, channel_end);
}

inline float larger(float best, float x) { return x > best || x != x ? x : best; }

void channel_max(const float* in, int64_t in_pixel, int64_t pixels, int64_t channels, float* out,
                 int64_t out_pixel) {
  for (int64_t x = 0; x < pixels; ++x, in += in_pixel, out += out_pixel) {
    float best = -__builtin_inff();
    int64_t channel = 0;
    if (channels >= Vec::kWidth) {
      Vec acc = Vec::load(in);
      for (channel = Vec::kWidth; channels - channel >= Vec::kWidth; channel += Vec::kWidth)
        acc = Vec::max_nan(acc, Vec::load(in + channel));
      float lanes[Vec::kWidth];
      acc.store(lanes);
      for (int64_t i = 0; i < Vec::kWidth; ++i) best = larger(best, lanes[i]);
    }
    for (; channel < channels; ++channel) best = larger(best, in[channel]);
    *out = best;
  }
}

void blend_row(const BlendCall& c) {
  const Vec below = Vec::set1(c.below), above = Vec::set1(1.0f - c.below);
  for (int64_t x = 0; x < c.width; ++x) {
    const Vec right = Vec::set1(c.right[x]), left = Vec::set1(1.0f - c.right[x]);
    const float *first = c.upper + c.first[x], *second = c.upper + c.second[x];
    const float *third = c.lower + c.first[x], *fourth = c.lower + c.second[x];
    float* out = c.output + x * c.pixel;
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
      const int64_t lanes = c.channels - channel;
      const bool whole = lanes >= Vec::kWidth;
      auto load = [&](const float* p) {
        return whole ? Vec::load(p + channel) : Vec::load_first(p + channel, lanes);
      };
      const Vec top = Vec::fma(load(second), right, load(first) * left);
      const Vec bottom = Vec::fma(load(fourth), right, load(third) * left);
      const Vec v = Vec::fma(bottom, below, top * above);
      whole ? v.store(out + channel) : v.store_first(out + channel, lanes);
    }
  }
}

// Channel j of part i becomes channel j * parts + i.
inline void interleave_two(const float* a, const float* b, int64_t channels, float* out) {
  for (int64_t j = 0; j < channels; j += Vec::kWidth, out += 2 * Vec::kWidth) {
    const int64_t lanes = channels - j < Vec::kWidth ? channels - j : Vec::kWidth;
    Vec low, high;
    Vec::interleave(Vec::load_first(a + j, lanes), Vec::load_first(b + j, lanes), low, high);
    if (2 * lanes <= Vec::kWidth) {
      low.store_first(out, 2 * lanes);
      continue;
    }
    low.store(out);
    high.store_first(out + Vec::kWidth, 2 * lanes - Vec::kWidth);
  }
}

void interleave_row(const InterleaveCall& c, const float* const* parts) {
  for (int64_t x = 0; x < c.width; ++x) {
    float* out = c.output + x * c.pixel;
    if (c.parts == 2) {
      interleave_two(parts[0] + x * c.step[0], parts[1] + x * c.step[1], c.channels, out);
      continue;
    }
    for (int64_t i = 0; i < c.parts; ++i) {
      const float* in = parts[i] + x * c.step[i];
      for (int64_t j = 0; j < c.channels; ++j) out[j * c.parts + i] = in[j];
    }
  }
}

// x, or x times the channel's slope where x is negative.
void prelu_pixels(const float* in, int64_t in_pixel, const float* slope, float* out, int64_t out_pixel,
                  int64_t pixels, int64_t channels) {
  for (int64_t x = 0; x < pixels; ++x, in += in_pixel, out += out_pixel)
    for (int64_t channel = 0; channel < channels; channel += Vec::kWidth) {
      const int64_t lanes = channels - channel < Vec::kWidth ? channels - channel : Vec::kWidth;
      const Vec v = Vec::load_first(in + channel, lanes);
      where_positive(v, v, v * Vec::load_first(slope + channel, lanes)).store_first(out + channel, lanes);
    }
}

}  // namespace
