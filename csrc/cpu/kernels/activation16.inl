// Activations of sums that are rounded to bfloat16 right behind them. Where the set has the instructions,
// sigmoid and SiLU are approximated to 1.4e-4, a fourteenth of what the rounding loses: half the operations.
#pragma once

namespace {

// None, ReLU and clamping, told apart once.
class ShortActivation {
 public:
  explicit ShortActivation(const Activation& activation) : clamps_(activation.kind == Activation::kClamp) {
    const bool relu = activation.kind == Activation::kReLU;
    least_ = Vec::set1(clamps_ ? activation.a : relu ? 0.0f : -__builtin_inff());
    most_ = Vec::set1(clamps_ ? activation.b : __builtin_inff());
  }
  Vec of(Vec x) const {
    x = Vec::at_least(least_, x);
    return clamps_ ? Vec::at_most(most_, x) : x;
  }

 private:
  bool clamps_;
  Vec least_, most_;
};

// 1 / (1 + e^-x) times `numerator`.
template <class B = Bf16>
inline Vec coarse_sigmoid(Vec numerator, Vec x) {
  if constexpr (B::kCoarse)
    return numerator * B::reciprocal(Vec::set1(1.0f) + B::power_of_two(x * Vec::set1(-1.44269504088896341f)));
  else
    return Vec::ratio(numerator, one_plus_exp_of_minus(x));
}

template <class Body>
inline void with_function16(const Activation& activation, Body&& body) {
  switch (activation.kind) {
    case Activation::kSigmoid:
      return body([](Vec x) { return coarse_sigmoid(Vec::set1(1.0f), x); });
    case Activation::kSiLU:
      return body([](Vec x) { return coarse_sigmoid(x, x); });
    default:
      return with_function(activation, body);
  }
}

// For activations that are not in_registers.
[[gnu::noinline]] void activate_long_sums(const Activation& activation, Vec* sums, int count) {
  with_function16(activation, [&](auto f) { apply_to_sums(f, sums, count); });
}

// The sums themselves stay in registers: of a copy alone the address is taken.
template <int N>
[[gnu::always_inline]] inline void activate_sums(const Activation& activation, Vec (&sums)[N]) {
  const auto for_each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 64
    for (int i = 0; i < N; ++i) sums[i] = f(sums[i]);
  };
  if (in_blocks(activation)) return activate_in_block(activation, for_each);
  if constexpr (Bf16::kCoarse) {
    if (activation.kind == Activation::kSiLU) return for_each([](Vec x) { return coarse_sigmoid(x, x); });
  }
  Vec copy[N];
#pragma GCC unroll 64
  for (int i = 0; i < N; ++i) copy[i] = sums[i];
  activate_long_sums(activation, copy, N);
#pragma GCC unroll 64
  for (int i = 0; i < N; ++i) sums[i] = copy[i];
}

[[gnu::noinline]] Vec apply_long_sum(const Activation& activation, Vec x) {
  with_function16(activation, [&](auto f) { x = f(x); });
  return x;
}

inline Vec apply_sum(const Activation& activation, Vec x) {
  return in_registers(activation) ? apply_short(activation, x) : apply_long_sum(activation, x);
}

}  // namespace
