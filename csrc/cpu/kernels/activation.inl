// Activations on a vector, and on stretches of memory.
//
// None, ReLU and clamping are done in registers wherever they occur. The others, which are long, run over
// values that the same loop has just written and that are still in the first-level cache; where that cannot
// be, as on the way into a layer, `apply` calls them.
#pragma once

namespace {

// 2^n * p(f) with n = round(x / ln 2), f the rest and p a polynomial (Cephes expf coefficients); relative
// error below 2e-7. NaN stays.
struct Exponential {
  Vec power, polynomial;  // n and p(f)
};

inline Exponential exponential_of(Vec x) {
  const Vec n = Vec::round(x * Vec::set1(1.44269504088896341f));
  Vec f = Vec::fma(n, Vec::set1(-0.693359375f), x);
  f = Vec::fma(n, Vec::set1(2.12194440e-4f), f);
  Vec p = Vec::set1(1.9875691500e-4f);
  p = Vec::fma(p, f, Vec::set1(1.3981999507e-3f));
  p = Vec::fma(p, f, Vec::set1(8.3334519073e-3f));
  p = Vec::fma(p, f, Vec::set1(4.1665795894e-2f));
  p = Vec::fma(p, f, Vec::set1(1.6666665459e-1f));
  p = Vec::fma(p, f, Vec::set1(5.0000001201e-1f));
  return {n, Vec::fma(p, f * f, f + Vec::set1(1.0f))};
}

// Underflows to 0 and overflows to infinity where e^x does.
inline Vec exp_of(Vec x) {
  const Exponential e = exponential_of(Vec::at_least(Vec::set1(-104.0f), Vec::at_most(Vec::set1(89.0f), x)));
  if constexpr (Vec::kScalesByAnyPower) return Vec::scale_by_power(e.polynomial, e.power);
  // 2^128 and 2^-149 are no floats with a plain exponent: in two steps.
  const Vec half = Vec::round(e.power * Vec::set1(0.5f));
  return Vec::scale_by_power(Vec::scale_by_power(e.polynomial, half), e.power - half);
}

// 1 + e^-x. Where powers are scaled by multiplying: a sum with `magic` is n = round(-x / ln 2) behind it and
// n + 126 in its last bits, so that shifting those gives 2^(n - 1); the polynomial is 2 e^-f (minimax,
// relative error 2e-9 before rounding). Beyond the bounds e^-x is infinite, or nothing beside 1.
//
// A template, so that sets which scale by any power need no power_in_last_bits.
template <class V>
inline V one_plus_exp_of_minus(V x) {
  const V one = V::set1(1.0f);
  if constexpr (V::kScalesByAnyPower) {
    return one + exp_of(V::zero() - x);
  } else {
    x = V::at_least(V::set1(-89.0f), V::at_most(V::set1(86.0f), x));
    const V magic = V::set1(12582912.0f + 126.0f);
    const V sum = V::fma(x, V::set1(-1.44269504088896341f), magic), n = sum - magic;
    V f = V::fma(n, V::set1(0.693359375f), x);
    f = V::fma(n, V::set1(-2.12194440e-4f), f);
    V p = V::set1(2.76735891e-3f);
    p = V::fma(p, f, V::set1(-1.67497136e-2f));
    p = V::fma(p, f, V::set1(8.33364576e-2f));
    p = V::fma(p, f, V::set1(-3.33328396e-1f));
    p = V::fma(p, f, V::set1(9.99999821e-1f));
    p = V::fma(p, f, V::set1(-2.0f));
    p = V::fma(p, f, V::set1(2.0f));
    return V::fma(p, V::power_in_last_bits(sum), one);
  }
}

// e^x - 1 for x <= 0, without cancellation near 0. Minimax polynomial, relative error 3e-10 before rounding.
inline Vec expm1_below_zero(Vec x) {
  x = Vec::at_least(Vec::set1(-20.0f), x);
  const Vec n = Vec::round(x * Vec::set1(1.44269504088896341f));
  Vec f = Vec::fma(n, Vec::set1(-0.693359375f), x);
  f = Vec::fma(n, Vec::set1(2.12194440e-4f), f);
  Vec q = Vec::set1(1.98458886e-4f);
  q = Vec::fma(q, f, Vec::set1(1.394065807e-3f));
  q = Vec::fma(q, f, Vec::set1(8.333389424e-3f));
  q = Vec::fma(q, f, Vec::set1(4.166636055e-2f));
  q = Vec::fma(q, f, Vec::set1(1.666666637e-1f));
  q = Vec::fma(q, f, Vec::set1(5.000000044e-1f));
  const Vec r = Vec::fma(f * f, q, f), power = Vec::scale_by_power(Vec::set1(1.0f), n);
  return Vec::fma(power, r, power - Vec::set1(1.0f));
}

inline Vec absolute(Vec x) { return Vec::at_least(Vec::zero() - x, x); }

inline Vec where_positive(Vec x, Vec a, Vec b) { return Vec::where_beats(x, Vec::zero(), a, b); }

inline Vec relu_of(Vec x) { return Vec::at_least(Vec::zero(), x); }

inline Vec clamp_of(Vec x, Vec least, Vec most) { return Vec::at_most(most, Vec::at_least(least, x)); }

inline Vec sigmoid_of(Vec x) { return Vec::ratio(Vec::set1(1.0f), one_plus_exp_of_minus(x)); }

// clamp(x + 3, 0, 6) / 6, exact at both ends
inline Vec hardsigmoid_of(Vec x) {
  return clamp_of(x + Vec::set1(3.0f), Vec::zero(), Vec::set1(6.0f)) / Vec::set1(6.0f);
}

// A division takes as long as all the rest: a product with 1/6 instead, a unit in the last place apart.
inline Vec hardswish_of(Vec x) {
  return x * Vec::set1(1.0f / 6.0f) * clamp_of(x + Vec::set1(3.0f), Vec::zero(), Vec::set1(6.0f));
}

inline Vec silu_of(Vec x) { return Vec::ratio(x, one_plus_exp_of_minus(x)); }

// Near 0 an odd minimax polynomial (relative error 7e-9 before rounding), else 1 - 2 / (e^(2 |x|) + 1).
inline Vec tanh_of(Vec x) {
  const Vec one = Vec::set1(1.0f), two = Vec::set1(2.0f), size = absolute(x), z = x * x;
  Vec p = Vec::set1(-5.515096546e-3f);
  p = Vec::fma(p, z, Vec::set1(2.046935702e-2f));
  p = Vec::fma(p, z, Vec::set1(-5.368800315e-2f));
  p = Vec::fma(p, z, Vec::set1(1.333083010e-1f));
  p = Vec::fma(p, z, Vec::set1(-3.333325984e-1f));
  const Vec near = Vec::fma(p, z * x, x);
  const Vec far = one - two / (exp_of(size * two) + one);
  return Vec::where_beats(size, Vec::set1(0.65f), where_positive(x, far, Vec::zero() - far), near);
}

// e^(-x^2 / 2)
inline Vec bell_of(Vec x) { return exp_of(x * x * Vec::set1(-0.5f)); }

// Phi(-|x|), the smaller tail of the normal distribution: erfc(z) / 2 with z = |x| / sqrt 2, and
// erfc(z) e^(z^2) is t times a minimax polynomial in t = 1 / (1 + 0.4 z), relative error 1.3e-7 before
// rounding. bell: that of x.
inline Vec normal_tail(Vec x, Vec bell) {
  const Vec one = Vec::set1(1.0f);
  const Vec t = one / Vec::fma(absolute(x), Vec::set1(0.4f * 0.70710678f), one);
  Vec p = Vec::set1(2.513008088e-02f);
  p = Vec::fma(p, t, Vec::set1(-9.144714750e-02f));
  p = Vec::fma(p, t, Vec::set1(8.453749812e-02f));
  p = Vec::fma(p, t, Vec::set1(-2.799927183e-03f));
  p = Vec::fma(p, t, Vec::set1(7.071422306e-02f));
  p = Vec::fma(p, t, Vec::set1(8.427127729e-02f));
  p = Vec::fma(p, t, Vec::set1(1.039213275e-01f));
  p = Vec::fma(p, t, Vec::set1(1.128347993e-01f));
  p = Vec::fma(p, t, Vec::set1(1.128379310e-01f));
  return p * t * bell;
}

// x * Phi(x), without cancellation for negative x.
inline Vec gelu_of(Vec x) {
  const Vec tail = normal_tail(x, bell_of(x));
  return x * where_positive(x, Vec::set1(1.0f) - tail, tail);
}

// 0.5 x (1 + tanh u) = x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_tanh_of(Vec x) {
  const Vec u = Vec::fma(x * x * x, Vec::set1(0.044715f), x) * Vec::set1(2.0f * 0.79788456f);
  return x / one_plus_exp_of_minus(u);
}

// x tanh(ln(1 + e^x)) = x w / (w + 2), w = e^x (e^x + 2)
inline Vec mish_of(Vec x) {
  const Vec two = Vec::set1(2.0f), e = exp_of(Vec::at_most(Vec::set1(20.0f), x)), w = e * (e + two);
  return x * (w / (w + two));
}

// body(f): f is the activation as a function of vectors.
template <class Body>
inline void with_function(const Activation& activation, Body&& body) {
  const Vec a = Vec::set1(activation.a), b = Vec::set1(activation.b);
  switch (activation.kind) {
    case Activation::kReLU:
      return body([](Vec x) { return relu_of(x); });
    case Activation::kSigmoid:
      return body([](Vec x) { return sigmoid_of(x); });
    case Activation::kClamp:
      return body([=](Vec x) { return clamp_of(x, a, b); });
    case Activation::kLeakyReLU:
      return body([=](Vec x) { return where_positive(x, x, x * a); });
    case Activation::kHardsigmoid:
      return body([](Vec x) { return hardsigmoid_of(x); });
    case Activation::kHardswish:
      return body([](Vec x) { return hardswish_of(x); });
    case Activation::kSiLU:
      return body([](Vec x) { return silu_of(x); });
    case Activation::kTanh:
      return body([](Vec x) { return tanh_of(x); });
    case Activation::kGELU:
      return body([](Vec x) { return gelu_of(x); });
    case Activation::kGELUTanh:
      return body([](Vec x) { return gelu_tanh_of(x); });
    case Activation::kELU:
      return body(
          [=](Vec x) { return where_positive(x, x, expm1_below_zero(Vec::at_most(Vec::zero(), x)) * a); });
    case Activation::kMish:
      return body([](Vec x) { return mish_of(x); });
    case Activation::kNone:
    case Activation::kKinds:
      return;
  }
}

inline bool in_registers(const Activation& a) {
  return a.kind == Activation::kNone || a.kind == Activation::kReLU || a.kind == Activation::kClamp;
}

[[gnu::noinline]] Vec apply_long(const Activation& activation, Vec x) {
  with_function(activation, [&](auto f) { x = f(x); });
  return x;
}

// None, ReLU and clamping; the others are left to activate_pixels behind the loop.
inline Vec apply_short(const Activation& activation, Vec x) {
  if (activation.kind == Activation::kReLU) return relu_of(x);
  if (activation.kind == Activation::kClamp)
    return clamp_of(x, Vec::set1(activation.a), Vec::set1(activation.b));
  return x;
}

inline Vec apply(const Activation& activation, Vec x) {
  return in_registers(activation) ? apply_short(activation, x) : apply_long(activation, x);
}

template <class F>
inline void apply_to(F f, float* x, int64_t count) {
  int64_t i = 0;
  // Four vectors at a time: their long chains of dependent operations run side by side.
  for (; i + 4 * Vec::kWidth <= count; i += 4 * Vec::kWidth) {
    Vec v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = f(Vec::load(x + i + j * Vec::kWidth));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j].store(x + i + j * Vec::kWidth);
  }
  for (; i + 2 * Vec::kWidth <= count; i += 2 * Vec::kWidth) {
    const Vec first = f(Vec::load(x + i)), second = f(Vec::load(x + i + Vec::kWidth));
    first.store(x + i);
    second.store(x + i + Vec::kWidth);
  }
  for (; i + Vec::kWidth <= count; i += Vec::kWidth) f(Vec::load(x + i)).store(x + i);
  if (i < count) f(Vec::load_first(x + i, count - i)).store_first(x + i, count - i);
}

void activate(float* x, int64_t count, Activation activation) {
  with_function(activation, [&](auto f) { apply_to(f, x, count); });
}

// `channels` of each of `pixels` pixels, `step` floats apart.
void activate_pixels(float* x, int64_t step, int64_t pixels, int64_t channels, const Activation& activation) {
  if (step == channels) return activate(x, pixels * channels, activation);
  with_function(activation, [&](auto f) {
    for (int64_t i = 0; i < pixels; ++i) apply_to(f, x + i * step, channels);
  });
}

// Four sums at a time, as above.
template <class F>
inline void apply_to_sums(F f, Vec* sums, int count) {
  int i = 0;
  for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[i + j] = f(sums[i + j]);
  }
  for (; i < count; ++i) sums[i] = f(sums[i]);
}

[[gnu::noinline]] void activate_long(const Activation& activation, Vec* sums, int count) {
  with_function(activation, [&](auto f) { apply_to_sums(f, sums, count); });
}

// Kinds that register blocks have in their registers: where a block's sums are finished, one more is no
// burden.
inline bool in_blocks(const Activation& a) { return in_registers(a) || a.kind == Activation::kHardswish; }

// One of those. for_each(f): replaces each sum of a register block by f of it.
template <class ForEach>
[[gnu::always_inline]] inline void activate_in_block(const Activation& activation, ForEach&& for_each) {
  if (activation.kind == Activation::kReLU) return for_each([](Vec x) { return relu_of(x); });
  if (activation.kind == Activation::kHardswish) return for_each([](Vec x) { return hardswish_of(x); });
  if (activation.kind == Activation::kClamp) {
    const Vec least = Vec::set1(activation.a), most = Vec::set1(activation.b);
    return for_each([=](Vec x) { return clamp_of(x, least, most); });
  }
}

// Any, of N sums. Long ones run over a copy: what the block is written to may be far memory, which is written
// once.
template <int N, class ForEach>
[[gnu::always_inline]] inline void activate_block(const Activation& activation, ForEach&& for_each) {
  if (in_blocks(activation)) return activate_in_block(activation, for_each);
  Vec copy[N];
  int i = 0;
  for_each([&](Vec x) { return copy[i++] = x; });
  activate_long(activation, copy, N);
  i = 0;
  for_each([&](Vec) { return copy[i++]; });
}

// The gradient in front of an activation, from what the activation gave: for those kinds whose output tells.
[[gnu::noinline]] Vec gradient_long(const Activation& activation, Vec output, Vec grad) {
  const Vec a = Vec::set1(activation.a), b = Vec::set1(activation.b);
  const auto inside = [&](Vec most) {
    return Vec::where_beats(most, output, grad, Vec::where_beats(output, most, grad, Vec::zero()));
  };
  switch (activation.kind) {
    case Activation::kClamp:  // NaN passes, as in eager PyTorch
      return Vec::where_beats(output, a, inside(b), Vec::zero());
    case Activation::kLeakyReLU:
      return where_positive(output, grad, grad * a);
    case Activation::kHardsigmoid:
      return where_positive(output, inside(Vec::set1(1.0f)) * Vec::set1(1.0f / 6.0f), Vec::zero());
    case Activation::kTanh:
      return grad * (Vec::set1(1.0f) - output * output);
    case Activation::kELU:
      return where_positive(output, grad, grad * (output + a));
    default:
      return grad;
  }
}

inline Vec gradient_before(const Activation& activation, Vec output, Vec grad) {
  if (activation.kind == Activation::kNone) return grad;
  if (activation.kind == Activation::kReLU) return Vec::where_positive(output, grad);
  if (activation.kind == Activation::kSigmoid) return grad * (Vec::set1(1.0f) - output) * output;
  return gradient_long(activation, output, grad);
}

// Derivatives at x of those whose output does not tell them.

inline Vec silu_slope(Vec x) {
  const Vec s = sigmoid_of(x);
  return Vec::fma(x * s, Vec::set1(1.0f) - s, s);
}

// Phi(x) + x phi(x)
inline Vec gelu_slope(Vec x) {
  const Vec bell = bell_of(x), tail = normal_tail(x, bell);
  return Vec::fma(x * Vec::set1(0.39894228f), bell, where_positive(x, Vec::set1(1.0f) - tail, tail));
}

// s + x s (1 - s) d(2 u)/dx with u as for gelu_tanh_of and s = sigmoid(2 u)
inline Vec gelu_tanh_slope(Vec x) {
  const Vec one = Vec::set1(1.0f), scale = Vec::set1(2.0f * 0.79788456f), z = x * x;
  const Vec s = sigmoid_of(Vec::fma(z * x, Vec::set1(0.044715f), x) * scale);
  return Vec::fma(x * Vec::fma(z, Vec::set1(3.0f * 0.044715f), one) * scale, s * (one - s), s);
}

inline Vec hardswish_slope(Vec x) {
  const Vec one = Vec::set1(1.0f), three = Vec::set1(3.0f);
  const Vec inside = Vec::fma(x, Vec::set1(1.0f / 3.0f), Vec::set1(0.5f));
  const Vec below = Vec::where_beats(x, Vec::zero() - three, inside, Vec::zero());
  return Vec::where_beats(three, x, below, one);
}

// t + x (1 - t^2) sigmoid(x) with t = w / (w + 2), w and e as for mish_of
inline Vec mish_slope(Vec x) {
  const Vec one = Vec::set1(1.0f), two = Vec::set1(2.0f), e = exp_of(Vec::at_most(Vec::set1(20.0f), x));
  const Vec w = e * (e + two), b = one / (w + two);
  return Vec::fma(x * Vec::set1(4.0f) * (w + one) * b * b, e / (e + one), w * b);
}

[[gnu::noinline]] Vec gradient_through_long(const Activation& activation, Vec x, Vec grad) {
  switch (activation.kind) {
    case Activation::kSiLU:
      return grad * silu_slope(x);
    case Activation::kGELU:
      return grad * gelu_slope(x);
    case Activation::kGELUTanh:
      return grad * gelu_tanh_slope(x);
    case Activation::kHardswish:
      return grad * hardswish_slope(x);
    case Activation::kMish:
      return grad * mish_slope(x);
    case Activation::kLeakyReLU:  // with a slope below 0, too, whose output does not tell
      return where_positive(x, grad, grad * Vec::set1(activation.a));
    case Activation::kELU:  // likewise
      return where_positive(x, grad,
                            grad * Vec::set1(activation.a) *
                                (expm1_below_zero(Vec::at_most(Vec::zero(), x)) + Vec::set1(1.0f)));
    default:
      return gradient_before(activation, apply(activation, x), grad);
  }
}

// The gradient in front of an activation, from what went into it: for every kind.
inline Vec gradient_through(const Activation& activation, Vec x, Vec grad) {
  if (activation.kind == Activation::kNone) return grad;
  if (activation.kind == Activation::kReLU) return Vec::where_positive(x, grad);
  return gradient_through_long(activation, x, grad);
}

}  // namespace
