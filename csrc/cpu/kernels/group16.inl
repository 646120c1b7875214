// Convolution of bfloat16 values in groups of G channels by products of pairs (cpu/depthwise16.h): 3x3
// pixels. A register block is 16 channels by R neighbouring outputs of a row; every pair of a group's inputs
// is spread over the group's lanes once for all outputs of the block that meet it.
namespace {

constexpr int kGroupColumns = 8, kGroupKernel = 3;

// Pointers to a block's first pixel, at its first channel.
struct Group16Block {
  const uint16_t* x;
  const uint16_t* weight;
  const float* shift;
  const uint16_t* residual;  // or null
  uint16_t* y;
};

// Sums of an output, added up at the end: products that wait for one another take several times as long.
constexpr int kGroupChains = 2;

template <int S, int G, int R>
struct GroupRow {
  // One kernel row. sums: chain by chain, then outputs.
  template <class Lanes>
  static void add(const uint16_t* x, int64_t pixel, const uint16_t* weight, const Lanes& lanes,
                  Vec (&sums)[kGroupChains * R]) {
    GroupPairs::Values w[kGroupKernel][G / 2];
#pragma GCC unroll 4
    for (int k = 0; k < kGroupKernel; ++k)
#pragma GCC unroll 4
      for (int j = 0; j < G / 2; ++j)
        w[k][j] = GroupPairs::load(weight + (k * G / 2 + j) * 2 * kDepthwiseLanes);
#pragma GCC unroll 32
    for (int i = 0; i < (R - 1) * S + kGroupKernel; ++i) {
      const auto values = lanes.load(x + i * pixel);
#pragma GCC unroll 4
      for (int j = 0; j < G / 2; ++j) {
        const auto pairs = GroupPairs::spread<G>(values, j);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (i >= r * S && i < r * S + kGroupKernel) {
            Vec& sum = sums[j % kGroupChains * R + r];
            sum = GroupPairs::add(w[i - r * S][j], pairs, sum);
          }
      }
    }
  }
};

template <int S, int G, int R, class Lanes>
void group16_block(const Depthwise16Call& c, const Group16Block& b, const Lanes& lanes) {
  Vec chains[kGroupChains * R];
#pragma GCC unroll 16
  for (int i = 0; i < kGroupChains * R; ++i) chains[i] = Vec::zero();
  for (int64_t y = 0; y < kGroupKernel; ++y)
    GroupRow<S, G, R>::add(b.x + y * c.input.row, c.input.pixel,
                           b.weight + y * kGroupKernel * G * kDepthwiseLanes, lanes, chains);
  const Vec shift = Vec::load(b.shift);
  Vec sums[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    sums[r] = chains[r] + chains[R + r] + shift;
    if (b.residual) sums[r] = sums[r] + GroupPairs::widen(lanes.load(b.residual + r * c.residual.pixel));
  }
  activate_sums(c.activation, sums);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) lanes.store(sums[r], b.y + r * c.output.pixel);
}

template <int S, int G, class Lanes, int R = kGroupColumns>
void group16_columns(int64_t count, const Depthwise16Call& c, const Group16Block& b, const Lanes& lanes) {
  if constexpr (R > 1) {
    if (count < R) return group16_columns<S, G, Lanes, R - 1>(count, c, b, lanes);
  }
  group16_block<S, G, R>(c, b, lanes);
}

// All columns of a row, blocks as equal as possible.
template <int S, int G, class Lanes>
void group16_row(const Depthwise16Call& c, const Group16Block& first, const Lanes& lanes) {
  const int64_t blocks = (c.width + kGroupColumns - 1) / kGroupColumns;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t x = c.width * block / blocks, end = c.width * (block + 1) / blocks;
    Group16Block b = first;
    b.x += x * S * c.input.pixel;
    b.y += x * c.output.pixel;
    if (b.residual) b.residual += x * c.residual.pixel;
    group16_columns<S, G>(end - x, c, b, lanes);
  }
}

template <int S, int G>
void group16_rows(const Depthwise16Call& c, int64_t row_begin, int64_t row_end) {
  constexpr int64_t kWeights = kGroupKernel * kGroupKernel * G * kDepthwiseLanes;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / c.height, y = row % c.height;
    const uint16_t* x = c.input.data + n * c.input.image + y * S * c.input.row;
    uint16_t* to = c.output.data + n * c.output.image + y * c.output.row;
    const uint16_t* residual =
        c.residual.data ? c.residual.data + n * c.residual.image + y * c.residual.row : nullptr;
    for (int64_t channel = 0; channel < c.channels; channel += kDepthwiseLanes) {
      const Group16Block b{x + channel, c.weight + channel / kDepthwiseLanes * kWeights, c.shift + channel,
                           residual ? residual + channel : nullptr, to + channel};
      const int64_t left = c.channels - channel;
      if (left >= kDepthwiseLanes)
        group16_row<S, G>(c, b, GroupPairs::Whole{});
      else
        group16_row<S, G>(c, b, GroupPairs::Part(left));
    }
  }
}

template <int G>
void group16_of(const Depthwise16Call& c, int64_t row_begin, int64_t row_end) {
  (c.stride == 1 ? group16_rows<1, G> : group16_rows<2, G>)(c, row_begin, row_end);
}

void group16(const Depthwise16Call& c, int64_t row_begin, int64_t row_end) {
  (c.group == 4 ? group16_of<4> : group16_of<8>)(c, row_begin, row_end);
}

}  // namespace
