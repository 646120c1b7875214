// The most that a core can do: multiply-adds without memory, and reading without arithmetic to speak of.
namespace {

// Enough of them hide the latency of a multiply-add on two units; they and a constant fit 16 registers.
constexpr int kSums = 12;
constexpr int kStreams = 8;
static_assert(kSums * Vec::kWidth <= kLimitFloats && kLimitFloats % (kStreams * Vec::kWidth) == 0);

// The sums tend to 1, so no operand is ever denormal or infinite. They start from different values in memory:
// equal ones would be computed once.
double multiply_adds(float* sums, int64_t rounds) {
  const Vec half = Vec::set1(0.5f);
  Vec sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = Vec::load(sums + i * Vec::kWidth);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] = Vec::fma(sum[i], half, half);
  for (int i = 0; i < kSums; ++i) sum[i].store(sums + i * Vec::kWidth);
  return 2.0 * kSums * Vec::kWidth * static_cast<double>(rounds);
}

float read_all(const float* x, int64_t count) {
  Vec sum[kStreams];
  for (int i = 0; i < kStreams; ++i) sum[i] = Vec::zero();
  for (int64_t at = 0; at + kStreams * Vec::kWidth <= count; at += kStreams * Vec::kWidth)
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) sum[i] = sum[i] + Vec::load(x + at + i * Vec::kWidth);
  for (int i = 1; i < kStreams; ++i) sum[0] = sum[0] + sum[i];
  float lanes[Vec::kWidth], total = 0.0f;
  sum[0].store(lanes);
  for (const float lane : lanes) total += lane;
  return total;
}

}  // namespace
