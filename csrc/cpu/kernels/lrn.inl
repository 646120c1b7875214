// Local response normalisation across channels, NHWC: vectors run over the channels of one pixel.
namespace {

// Lanes [first, first + width) of a row of `count` floats, zero outside it.
inline Vec load_window(const float* row, int64_t first, int64_t count) {
  if (first >= 0 && first + Vec::kWidth <= count) return Vec::load(row + first);
  if (first >= 0) return Vec::load_first(row + first, count - first);
  float lanes[Vec::kWidth];
  for (int64_t i = 0; i < Vec::kWidth; ++i)
    lanes[i] = first + i >= 0 && first + i < count ? row[first + i] : 0.0f;
  return Vec::load(lanes);
}

// For each channel of the vector at `channel`, the sum of `term` over the channels from `before` in front of
// it to `behind` after it. Summed afresh for every vector: a running sum would carry an Inf or NaN, and its
// rounding errors, into all later channels.
template <class Term>
inline Vec window_sum(const float* row, int64_t channel, int64_t before, int64_t behind, int64_t count,
                      Term term) {
  const int64_t reach = channel + Vec::kWidth - 1, left = count - 1 - channel;
  const int64_t first = before < reach ? -before : -reach, last = behind < left ? behind : left;
  Vec sum = Vec::zero();
  for (int64_t offset = first; offset <= last; ++offset)
    sum = term(sum, load_window(row, channel + offset, count));
  return sum;
}

// x^beta; the exponents of the literature without a call per lane.
inline Vec power_of(Vec x, float beta) {
  if (beta == 0.75f) {
    const Vec root = Vec::sqrt(x);
    return root * Vec::sqrt(root);
  }
  if (beta == 0.5f) return Vec::sqrt(x);
  if (beta == 1.0f) return x;
  float lanes[Vec::kWidth];
  x.store(lanes);
  for (int64_t i = 0; i < Vec::kWidth; ++i) lanes[i] = __builtin_powf(lanes[i], beta);
  return Vec::load(lanes);
}

// k + alpha / size * (sum of squares around)
inline Vec lrn_base(const LrnCall& c, const float* x, int64_t channel) {
  const Vec sum = window_sum(x, channel, c.size / 2, (c.size - 1) / 2, c.channels,
                             [](Vec acc, Vec v) { return Vec::fma(v, v, acc); });
  return Vec::fma(sum, Vec::set1(c.alpha / static_cast<float>(c.size)), Vec::set1(c.k));
}

void lrn(const LrnCall& c, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const float* in = c.input.data + n * c.input.image + y * c.input.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    for (int64_t x = 0; x < c.width; ++x, in += c.input.pixel, out += c.output.pixel)
      for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
        const int64_t lanes = c.channels - channel;
        const Vec v = load_window(in, channel, c.channels) / power_of(lrn_base(c, in, channel), c.beta);
        lanes >= Vec::kWidth ? v.store(out + channel) : v.store_first(out + channel, lanes);
      }
  }
}

// With d the base of the power: dx = g / d^beta - 2 alpha beta / size * x * (sum of g x / d^(beta + 1) over
// the channels whose window holds this one).
inline void lrn_backward_pixel(const LrnCall& c, const float* x, const float* grad, float* direct,
                               float* shared, float* out) {
  const Vec factor = Vec::set1(-2.0f * c.alpha * c.beta / static_cast<float>(c.size));
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const Vec base = lrn_base(c, x, channel);
    const Vec g = load_window(grad, channel, c.channels) / power_of(base, c.beta);
    g.store_first(direct + channel, lanes);
    (g * load_window(x, channel, c.channels) / base).store_first(shared + channel, lanes);
  }
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const Vec sum = window_sum(shared, channel, (c.size - 1) / 2, c.size / 2, c.channels,
                               [](Vec acc, Vec v) { return acc + v; });
    const Vec v =
        Vec::fma(load_window(x, channel, c.channels) * factor, sum, Vec::load_first(direct + channel, lanes));
    v.store_first(out + channel, lanes);
  }
}

void lrn_backward(const LrnBackwardCall& b, int64_t row_begin, int64_t row_end) {
  const LrnCall& c = b.norm;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const float* in = c.input.data + n * c.input.image + y * c.input.row;
    const float* grad = b.grad.data + n * b.grad.image + y * b.grad.row;
    float* out = c.output.data + n * c.output.image + y * c.output.row;
    for (int64_t x = 0; x < c.width; ++x) {
      lrn_backward_pixel(c, in, grad, b.scratch, b.scratch + c.channels, out);
      in += c.input.pixel;
      grad += b.grad.pixel;
      out += c.output.pixel;
    }
  }
}

}  // namespace
