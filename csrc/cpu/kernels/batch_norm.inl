// Per-channel sums and the normalising pass, over rows of adjacent channels.
#include "cpu/kernels/values.inl"

namespace {

// Asked for ahead: hardware does not foresee lines a pixel apart.
constexpr int64_t kRowsAhead = 16;

// What is added of a value: itself, its distance from a number of its channel, or the square of that.
enum class Summand { kValue, kDistance, kSquare };

// NV vectors of channels, the last of which has `lanes`: sums of their own, which do not wait for each other.
template <int NV, Summand kSummand, class T>
inline void sum_columns(const T* x, int64_t stride, int64_t rows, const float* mean, float* sum,
                        int64_t lanes) {
  constexpr bool kCentred = kSummand != Summand::kValue;
  const auto load = [&](const auto* p, int j) {
    return load_lanes(p + j * Vec::kWidth, j == NV - 1 ? lanes : Vec::kWidth);
  };
  Vec acc[NV], centre[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    acc[j] = load(sum, j);
    centre[j] = kCentred ? load(mean, j) : Vec::zero();
  }
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    if constexpr (kSummand != Summand::kSquare)  // these are in cache
#pragma GCC unroll 4
      for (int j = 0; j < NV; j += 64 / static_cast<int>(sizeof(T)) / Vec::kWidth)
        fetch(x, kRowsAhead * stride + j * Vec::kWidth);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const Vec d = kCentred ? load(x, j) - centre[j] : load(x, j);
      acc[j] = kSummand == Summand::kSquare ? Vec::fma(d, d, acc[j]) : acc[j] + d;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) store_lanes(acc[j], sum + j * Vec::kWidth, j == NV - 1 ? lanes : Vec::kWidth);
}

template <Summand kSummand, class T>
void sum_all_columns(const T* x, int64_t stride, int64_t rows, int64_t channels, const float* mean,
                     float* sum) {
  int64_t channel = 0;
  const auto centre = [&] { return mean ? mean + channel : nullptr; };
  for (; channels - channel >= 4 * Vec::kWidth; channel += 4 * Vec::kWidth)
    sum_columns<4, kSummand>(x + channel, stride, rows, centre(), sum + channel, Vec::kWidth);
  for (; channel < channels; channel += Vec::kWidth)
    sum_columns<1, kSummand>(x + channel, stride, rows, centre(), sum + channel,
                             channels - channel < Vec::kWidth ? channels - channel : Vec::kWidth);
}

template <class T>
void column_sum(const T* x, int64_t stride, int64_t rows, int64_t channels, const float* mean, float* sum) {
  mean ? sum_all_columns<Summand::kSquare>(x, stride, rows, channels, mean, sum)
       : sum_all_columns<Summand::kValue>(x, stride, rows, channels, mean, sum);
}

template <class T>
void column_distances(const T* x, int64_t stride, int64_t rows, int64_t channels, const float* from,
                      float* sum) {
  sum_all_columns<Summand::kDistance>(x, stride, rows, channels, from, sum);
}

// Rows of this many values stay in the first-level cache.
constexpr int64_t kAffineFloats = 2048;

// kByRow: whether there is a number for each row.
template <bool kByRow>
inline void affine_row(const AffineCall& c, int64_t r) {
  const float* in = c.input + r * c.input_stride;
  const float* factor = c.factor ? c.factor + r * c.factor_stride : nullptr;
  const float* res = c.residual ? c.residual + r * c.residual_stride : nullptr;
  float* out = c.output + r * c.output_stride;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t lanes = c.channels - channel < Vec::kWidth ? c.channels - channel : Vec::kWidth;
    const bool whole = lanes == Vec::kWidth;
    auto load = [&](const float* p) { return whole ? Vec::load(p) : Vec::load_first(p, lanes); };
    Vec v = load(in + channel);
    if (c.scale) v = v * load(c.scale + channel);
    if (c.shift) v = v + load(c.shift + channel);
    if (factor) v = v * load(factor + channel);
    if (kByRow && c.row_factor) v = v * Vec::set1(c.row_factor[r * c.row_step]);
    if (kByRow && c.row_shift) v = v + Vec::set1(c.row_shift[r * c.row_step]);
    if (res) v = v + load(res + channel);
    v = apply_short(c.activation, v);
    whole ? v.store(out + channel) : v.store_first(out + channel, lanes);
  }
}

template <bool kByRow>
void affine_rows(const AffineCall& c, int64_t rows) {
  const bool behind = !in_registers(c.activation);
  const int64_t block = behind ? (kAffineFloats + c.channels - 1) / c.channels : rows;
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t end = rows - begin < block ? rows : begin + block;
    for (int64_t r = begin; r < end; ++r) affine_row<kByRow>(c, r);
    if (behind)
      activate_pixels(c.output + begin * c.output_stride, c.output_stride, end - begin, c.channels,
                      c.activation);
  }
}

void affine(const AffineCall& c, int64_t rows) {
  c.row_factor || c.row_shift ? affine_rows<true>(c, rows) : affine_rows<false>(c, rows);
}

}  // namespace
