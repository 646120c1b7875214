// Activations on a vector, and on a stretch of memory.
namespace {

// e^x by 2^n * p(f): n = round(x / ln 2), f the rest, p a polynomial (Cephes expf coefficients); relative
// error below 2e-7. x is held inside the range of float, so that large magnitudes give 0 and 3e38, never
// garbage. NaN stays.
inline Vec exp_of(Vec x) {
  x = Vec::at_least(Vec::set1(-87.33f), Vec::at_most(Vec::set1(88.02f), x));
  const Vec n = Vec::round(x * Vec::set1(1.44269504088896341f));
  Vec f = Vec::fma(n, Vec::set1(-0.693359375f), x);
  f = Vec::fma(n, Vec::set1(2.12194440e-4f), f);
  Vec p = Vec::set1(1.9875691500e-4f);
  p = Vec::fma(p, f, Vec::set1(1.3981999507e-3f));
  p = Vec::fma(p, f, Vec::set1(8.3334519073e-3f));
  p = Vec::fma(p, f, Vec::set1(4.1665795894e-2f));
  p = Vec::fma(p, f, Vec::set1(1.6666665459e-1f));
  p = Vec::fma(p, f, Vec::set1(5.0000001201e-1f));
  p = Vec::fma(p, f * f, f + Vec::set1(1.0f));
  return Vec::scale_by_power(p, n);
}

inline Vec relu_of(Vec x) { return Vec::at_least(Vec::zero(), x); }

inline Vec sigmoid_of(Vec x) { return Vec::set1(1.0f) / (Vec::set1(1.0f) + exp_of(Vec::zero() - x)); }

inline Vec apply(Activation activation, Vec x) {
  if (activation == Activation::kReLU) return relu_of(x);
  if (activation == Activation::kSigmoid) return sigmoid_of(x);
  return x;
}

void activate(float* x, int64_t count, Activation activation) {
  int64_t i = 0;
  // Four vectors at a time: their long chains of dependent operations run side by side.
  for (; i + 4 * Vec::kWidth <= count; i += 4 * Vec::kWidth) {
    Vec v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = apply(activation, Vec::load(x + i + j * Vec::kWidth));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j].store(x + i + j * Vec::kWidth);
  }
  for (; i + Vec::kWidth <= count; i += Vec::kWidth) apply(activation, Vec::load(x + i)).store(x + i);
  if (i < count) apply(activation, Vec::load_first(x + i, count - i)).store_first(x + i, count - i);
}

void add(const float* a, const float* b, float* out, int64_t count, Activation activation) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= count; i += Vec::kWidth)
    apply(activation, Vec::load(a + i) + Vec::load(b + i)).store(out + i);
  if (i < count)
    apply(activation, Vec::load_first(a + i, count - i) + Vec::load_first(b + i, count - i))
        .store_first(out + i, count - i);
}

}  // namespace
