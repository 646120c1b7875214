#include "cpu/kernels/group16.inl"

// Depthwise convolution of bfloat16 values by products of pairs (cpu/depthwise16.h). A register block is 32
// channels by R neighbouring outputs of a row, of two rows where outputs lie one pixel apart: pairs of input
// rows then serve both. Blocks of channels are outermost, so that their weights stay in the first-level
// cache.
namespace {

// Outputs of a row in a block: with their inputs they fit the registers.
constexpr int kPairColumns = 4;

struct Depthwise16Block {
  const uint16_t* x;
  const uint16_t* weight;
  const float* shift;
  const uint16_t* residual;  // or null
  uint16_t* y;
};

// Pixels of one row of inputs or two, interleaved, and their products with weights for a row of outputs.
// sums: by halves, then columns.
template <int K, int S, int R, class Lanes>
struct PairRows {
  static constexpr int kColumns = (R - 1) * S + K;
  using Sums = Vec[2 * R];

  // b: null for a row alone.
  PairRows(const Lanes& lanes, const uint16_t* a, const uint16_t* b, int64_t pixel) {
#pragma GCC unroll 16
    for (int i = 0; i < kColumns; ++i) {
      const auto first = lanes.load(a + i * pixel);
      ChannelPairs::join(first, b ? lanes.load(b + i * pixel) : ChannelPairs::zero(), x_[0][i], x_[1][i]);
    }
  }
  void add(const uint16_t* weight, Sums& sums) const {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const auto w = ChannelPairs::load(weight + (2 * k + half) * kDepthwiseBlock);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          sums[half * R + r] = ChannelPairs::add(w, x_[half][r * S + k], sums[half * R + r]);
      }
  }

 private:
  ChannelPairs::Values x_[2][kColumns];
};

template <int R, class Lanes>
inline void finish_row(const Depthwise16Call& c, const Depthwise16Block& b, const Lanes& lanes, int64_t row,
                       Vec (&sums)[2 * R]) {
  const Vec shift[2] = {Vec::load(b.shift), Vec::load(b.shift + kDepthwiseLanes)};
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    sums[r] = sums[r] + shift[0];
    sums[R + r] = sums[R + r] + shift[1];
    if (!b.residual) continue;
    Vec low, high;
    ChannelPairs::widen(lanes.load(b.residual + row * c.residual.row + r * c.residual.pixel), low, high);
    sums[r] = sums[r] + low;
    sums[R + r] = sums[R + r] + high;
  }
  activate_sums(c.activation, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    lanes.store(ChannelPairs::rounded(sums[r], sums[R + r]), b.y + row * c.output.row + r * c.output.pixel);
}

// kRows rows of R outputs.
template <int K, int S, int kRows, int R, class Lanes>
void depthwise16_block(const Depthwise16Call& c, const Depthwise16Block& b, const Lanes& lanes) {
  static_assert(kRows == 1 || S == 1);
  using Rows = PairRows<K, S, R, Lanes>;
  constexpr int64_t kTerm = 2 * K * kDepthwiseBlock;
  const int64_t row = c.input.row, pixel = c.input.pixel;
  Vec sums[2][2 * R];
#pragma GCC unroll 2
  for (int y = 0; y < kRows; ++y)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * R; ++i) sums[y][i] = Vec::zero();
  Rows(lanes, b.x, nullptr, pixel).add(b.weight, sums[0]);
#pragma GCC unroll 4
  for (int y = 1; y < K; y += 2) {
    const Rows pairs(lanes, b.x + y * row, b.x + (y + 1) * row, pixel);
    pairs.add(b.weight + (y + 1) / 2 * kTerm, sums[0]);
    if constexpr (kRows == 2) pairs.add(b.weight + (K + y) / 2 * kTerm, sums[1]);
  }
  if constexpr (kRows == 2) Rows(lanes, b.x + K * row, nullptr, pixel).add(b.weight + K * kTerm, sums[1]);
#pragma GCC unroll 2
  for (int y = 0; y < kRows; ++y) finish_row<R>(c, b, lanes, y, sums[y]);
}

template <int K, int S, int kRows, class Lanes, int R = kPairColumns>
void depthwise16_columns(int64_t count, const Depthwise16Call& c, const Depthwise16Block& b,
                         const Lanes& lanes) {
  if constexpr (R > 1) {
    if (count < R) return depthwise16_columns<K, S, kRows, Lanes, R - 1>(count, c, b, lanes);
  }
  depthwise16_block<K, S, kRows, R>(c, b, lanes);
}

// All columns of kRows rows, blocks as equal as possible.
template <int K, int S, int kRows, class Lanes>
void depthwise16_row(const Depthwise16Call& c, const Depthwise16Block& first, const Lanes& lanes) {
  const int64_t blocks = (c.width + kPairColumns - 1) / kPairColumns;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t x = c.width * block / blocks, end = c.width * (block + 1) / blocks;
    Depthwise16Block b = first;
    b.x += x * S * c.input.pixel;
    b.y += x * c.output.pixel;
    if (b.residual) b.residual += x * c.residual.pixel;
    depthwise16_columns<K, S, kRows>(end - x, c, b, lanes);
  }
}

template <int K, int S, int kRows>
void depthwise16_channels(const Depthwise16Call& c, const uint16_t* x, uint16_t* y,
                          const uint16_t* residual) {
  for (int64_t channel = 0; channel < c.channels; channel += kDepthwiseBlock) {
    const Depthwise16Block b{x + channel, c.weight + channel / kDepthwiseBlock * depthwise_block_values(K, 1),
                             c.shift + channel, residual ? residual + channel : nullptr, y + channel};
    const int64_t left = c.channels - channel;
    if (left >= kDepthwiseBlock)
      depthwise16_row<K, S, kRows>(c, b, ChannelPairs::Whole{});
    else
      depthwise16_row<K, S, kRows>(c, b, ChannelPairs::Part(left));
  }
}

template <int K, int S>
void depthwise16_rows(const Depthwise16Call& c, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t n = row / c.height, y = row % c.height;
    const uint16_t* x = c.input.data + n * c.input.image + y * S * c.input.row;
    uint16_t* to = c.output.data + n * c.output.image + y * c.output.row;
    const uint16_t* residual =
        c.residual.data ? c.residual.data + n * c.residual.image + y * c.residual.row : nullptr;
    if constexpr (S == 1) {
      if (row + 1 < row_end && y + 1 < c.height) {
        depthwise16_channels<K, S, 2>(c, x, to, residual);
        row += 2;
        continue;
      }
    }
    depthwise16_channels<K, S, 1>(c, x, to, residual);
    ++row;
  }
}

void depthwise16(const Depthwise16Call& c, int64_t row_begin, int64_t row_end) {
  if (c.group > 1) return group16(c, row_begin, row_end);
  if (c.kernel == 3)
    return (c.stride == 1 ? depthwise16_rows<3, 1> : depthwise16_rows<3, 2>)(c, row_begin, row_end);
  if (c.kernel == 5)
    return (c.stride == 1 ? depthwise16_rows<5, 1> : depthwise16_rows<5, 2>)(c, row_begin, row_end);
  depthwise16_rows<7, 1>(c, row_begin, row_end);
}

}  // namespace
