// The gradients of weights by pairs against sums in double: included by conv16_check.cpp.
#pragma once

namespace {

// Operands of drawn sizes, in memory that ends where the last value ends.
struct GradientCase {
  int64_t in, out, pixels, taps;
  bool paired;  // one tap at 0; the input lies as the gradient does
  int64_t in_tiles() const { return (in + kGradientTile - 1) / kGradientTile; }
  int64_t out_tiles() const { return (out + kGradientTile - 1) / kGradientTile; }
};

class GradientCheck {
 public:
  GradientCheck(const GradientCase& c, Random& random) : c_(c), taps_(static_cast<size_t>(c.taps)) {
    for (int64_t& tap : taps_) tap = c.paired ? 0 : random.below(70);
    const int64_t longest = c.pixels + 96;
    input_ = drawn_values(longest * c.in, random);
    grad_ = drawn_values(c.pixels * c.out, random);
    row_step_ = longest;
    rows_.resize(static_cast<size_t>(c.in_tiles() * kGradientTile * longest));
    pairs_.resize(static_cast<size_t>(c.out_tiles() * kGradientTile * c.pixels));
    for (int64_t p = 0; p < longest && !c.paired; p += kPairBlock)
      transpose_pixels(pointers(input_, p, c.in).data(), c.in, rows_.data() + p, row_step_);
    if (c.paired) interleave(input_, c.in, rows_);
    interleave(grad_, c.out, pairs_);
  }

  // Twice over the same pixels: the second run adds.
  int64_t run(void (*kernel)(const PairGradientCall&), int64_t near_pixels) const {
    std::vector<float> sums(static_cast<size_t>(c_.in_tiles() * c_.out_tiles() * c_.taps * kSumTile), 1e30f);
    PairGradientCall call{rows_.data(),
                          row_step_,
                          c_.paired,
                          pairs_.data(),
                          c_.pixels,
                          near_pixels,
                          c_.in_tiles(),
                          c_.out_tiles(),
                          c_.in,
                          taps_.data(),
                          c_.taps,
                          sums.data(),
                          c_.in_tiles() * c_.taps * kSumTile,
                          true};
    kernel(call);
    call.first = false;
    kernel(call);
    int64_t wrong = 0;
    for (int64_t o = 0; o < c_.out; ++o)
      for (int64_t i = 0; i < c_.in; ++i)
        for (int64_t t = 0; t < c_.taps; ++t) wrong += !near(sum_at(sums, i, o, t), i, o, t);
    return wrong;
  }

 private:
  void interleave(const std::vector<uint16_t>& values, int64_t channels, std::vector<uint16_t>& to) const {
    for (int64_t p = 0; p < c_.pixels; p += kPairBlock)
      interleave_pixels(pointers(values, p, channels).data(), channels, to.data() + p * kGradientTile,
                        c_.pixels * kGradientTile);
  }
  static std::vector<uint16_t> drawn_values(int64_t count, Random& random) {
    std::vector<uint16_t> values(static_cast<size_t>(count));
    for (uint16_t& v : values) v = rounded(random.value());
    return values;
  }
  static std::vector<const uint16_t*> pointers(const std::vector<uint16_t>& values, int64_t first,
                                               int64_t channels) {
    std::vector<const uint16_t*> found;
    for (int64_t p = first; p < first + kPairBlock; ++p) found.push_back(values.data() + p * channels);
    return found;
  }
  float sum_at(const std::vector<float>& sums, int64_t i, int64_t o, int64_t t) const {
    const int64_t tile = (o / kGradientTile * c_.in_tiles() + i / kGradientTile) * c_.taps + t;
    return sums[static_cast<size_t>(tile * kSumTile + i % kGradientTile * kGradientTile + o % kGradientTile)];
  }
  bool near(float got, int64_t i, int64_t o, int64_t t) const {
    double sum = 0, size = 0;
    for (int64_t p = 0; p < c_.pixels; ++p) {
      const double product =
          static_cast<double>(
              widened(input_[static_cast<size_t>((p + taps_[static_cast<size_t>(t)]) * c_.in + i)])) *
          static_cast<double>(widened(grad_[static_cast<size_t>(p * c_.out + o)]));
      sum += 2 * product;
      size += 2 * std::fabs(product);
    }
    return std::fabs(static_cast<double>(got) - sum) <= 1e-5 * size;
  }

  GradientCase c_;
  std::vector<int64_t> taps_;
  std::vector<uint16_t> input_, grad_, rows_, pairs_;
  int64_t row_step_ = 0;
};

// The calling thread has its tiles.
int64_t check_gradients(int64_t cases) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < cases; ++i) {
    Random random(static_cast<uint64_t>(i) + 7000);
    const GradientCase c{1 + random.below(70), 1 + random.below(70), kPairBlock * (1 + random.below(9)),
                         1 + random.below(6), false};
    const GradientCheck check(c, random);
    wrong += check.run(amx_pair_gradient, kPairBlock * (1 + random.below(4)));
    wrong += check.run(vector_pair_gradient<EmulatedDot>, kPairBlock);
    const GradientCheck paired({c.in, c.out, c.pixels, 1, true}, random);
    wrong += paired.run(vector_pair_gradient<EmulatedDot>, kPairBlock);
  }
  return wrong;
}

// Rows of pixels with gaps, and a sum that goes on.
int64_t check_activation_backward() {
  int64_t wrong = 0;
  for (int64_t channels = 1; channels < 40; ++channels) {
    Random random(static_cast<uint64_t>(channels));
    const int64_t pixels = 5, step = channels + 3, values = (pixels - 1) * step + channels;
    std::vector<uint16_t> grad(static_cast<size_t>(values)), output(grad), to(grad);
    for (uint16_t& v : grad) v = rounded(random.value());
    for (uint16_t& v : output) v = rounded(random.value());
    std::vector<float> sums(static_cast<size_t>(channels), 1.0f);
    activation_backward({{grad.data(), step},
                         {output.data(), step},
                         {to.data(), step},
                         channels,
                         {Activation::kReLU},
                         sums.data()},
                        pixels);
    for (int64_t c = 0; c < channels; ++c) {
      float sum = 1.0f;
      for (int64_t p = 0; p < pixels; ++p) {
        const auto at = static_cast<size_t>(p * step + c);
        const uint16_t expected = widened(output[at]) > 0 ? grad[at] : uint16_t{0};
        wrong += widened(to[at]) != widened(expected);
        sum += widened(expected);
      }
      wrong += std::fabs(sums[static_cast<size_t>(c)] - sum) > 1e-4f;
    }
  }
  return wrong;
}

}  // namespace
