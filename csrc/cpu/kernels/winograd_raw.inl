// Products with weights that were not packed: they change at every step and meet few tiles, so they are
// transformed on their way.
#pragma once
#include "cpu/kernels/gather.inl"
#include "cpu/kernels/winograd_products.inl"
#include "cpu/kernels/winograd_weights.inl"

namespace {

// Asks for raw weights while others are multiplied: those of `inputs` input channels by `lanes` output
// channels, some lines at a time.
class RawFetch {
 public:
  RawFetch(const WinogradCall& c, int64_t size, const float* weight, int64_t inputs, int64_t lanes)
      : from_(weight), size_(size), row_(c.raw->row), column_(c.raw->column) {
    const bool by_lanes = c.raw->out < c.raw->in;  // these are closer to each other
    const int64_t distance = by_lanes ? c.raw->out : c.raw->in;
    outer_ = by_lanes ? inputs : lanes;
    outer_step_ = by_lanes ? c.raw->in : c.raw->out;
    run_ = (by_lanes ? lanes : inputs) * distance;
    if (distance == 1) return;
    size_ = 1;  // whole kernels lie one behind the other
    if (row_ < 0) from_ += (size - 1) * (row_ + column_);
  }
  int64_t lines() const { return outer_ * size_ * size_ * ((run_ + kLineFloats - 1) / kLineFloats); }
  void fetch(int64_t lines) {
    for (; lines > 0 && at_ < outer_; --lines) {
      __builtin_prefetch(from_ + at_ * outer_step_ + y_ * row_ + x_ * column_ + line_, 0, 2);
      if ((line_ += kLineFloats) < run_) continue;
      line_ = 0;
      if (++x_ < size_) continue;
      x_ = 0;
      if (++y_ < size_) continue;
      y_ = 0;
      ++at_;
    }
  }

 private:
  const float* from_;
  int64_t size_, row_, column_, outer_, outer_step_, run_;
  int64_t at_ = 0, y_ = 0, x_ = 0, line_ = 0;
};

// One panel of all points, its weights transformed for some input channels at a time, which stay in the
// second-level cache while all tiles of the block meet them.
template <int N, int M>
void raw_products(const WinogradCall& c, const WinogradScratch& s, const float* input, float* product,
                  int64_t tiles, int64_t panel, int64_t panel_end, float* kernels) {
  static_assert(kWinogradVectors == 2, "add cases below");
  constexpr int K = N - M + 1;
  float* gathered = kernels + N * N * s.kernel_point;
  const auto lanes_of = [&](int64_t p) {
    const int64_t left = c.channels - p * s.product_row;
    return left < s.product_row ? left : s.product_row;
  };
  const int64_t lanes = lanes_of(panel), stored = (lanes + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;
  const float* weight = c.weight + panel * s.product_row * c.raw->out;
  for (int64_t first = 0; first < c.in_channels; first += kRawChannels) {
    const int64_t inputs = c.in_channels - first < kRawChannels ? c.in_channels - first : kRawChannels;
    for (int64_t i = 0; i < inputs; i += kGatheredChannels) {
      const int64_t count = inputs - i < kGatheredChannels ? inputs - i : kGatheredChannels;
      gather_kernels({weight + (first + i) * c.raw->in, c.raw->out, c.raw->in, c.raw->row, c.raw->column, K,
                      K, count, lanes, gathered, K * K * stored, stored});
      transform_kernels<N, K>(gathered, count, stored, kernels + i * stored, s.kernel_point);
    }
    const bool same_panel = first + inputs < c.in_channels;
    const int64_t next = same_panel ? first + inputs : 0, next_panel = same_panel ? panel : panel + 1;
    const int64_t rest = c.in_channels - next;
    RawFetch ahead(c, K, c.weight + next_panel * s.product_row * c.raw->out + next * c.raw->in,
                   rest < kRawChannels ? rest : kRawChannels,
                   next_panel < panel_end ? lanes_of(next_panel) : 0);
    const int64_t lines = (ahead.lines() + N * N - 1) / (N * N);
    const auto run = stored == Vec::kWidth ? winograd_blocks<1> : winograd_blocks<2>;
    for (int point = 0; point < N * N; ++point) {
      ahead.fetch(lines);
      run({input + point * s.input.point + first / kBlockChannels * s.input.block, s.input.block,
           kernels + point * s.kernel_point, inputs, product + point * s.product_point, s.product_row,
           first > 0},
          tiles, 0);
    }
  }
}

}  // namespace
