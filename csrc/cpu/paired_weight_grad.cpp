#include "cpu/paired_weight_grad.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/conv16_job.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

// Fewer input channels leave most rows of a register block, or of a tile, empty; fewer than kFewInputs are
// folded where there are strides.
constexpr int64_t kLeastInputs = 5, kFewInputs = 8;
// Strips of pixels, both operands: in the second-level cache; or longer, where each strip reads and writes
// sums that are not.
constexpr int64_t kStripBytes = 1 << 20, kLongStripBytes = 6 << 20;
constexpr int64_t kNearSumBytes = 1 << 20;
// Pixels have sums of their own in parts, which threads share: as many parts as this much memory holds.
constexpr int64_t kPartsBytes = 4 << 20, kMostParts = 32;
constexpr int64_t kNearPixels = 256;
// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 2e6;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the pixels of a view stand in the order of flat pixels, from one on.
class FlatWalk {
 public:
  // Pixels of one phase, or (stride 1, no padding) the output's.
  FlatWalk(const View16& view, int64_t images, const FlatAxis& y, const FlatAxis& x, int64_t phase_y,
           int64_t phase_x, int64_t at)
      : view_(view), images_(images), y_axis_(y), x_axis_(x), phase_y_(phase_y), phase_x_(phase_x) {
    x_ = at % x.pitch;
    y_ = at / x.pitch % y.pitch;
    n_ = at / x.pitch / y.pitch;
    find_row();
  }
  // The next kPairBlock pixels; `zeros` for what lies in no image.
  void next(const uint16_t* zeros, const uint16_t** pixels) {
    for (int64_t i = 0; i < kPairBlock; ++i) {
      const int64_t column = row_ ? x_axis_.source(x_, phase_x_) : -1;
      pixels[i] = column < 0 ? zeros : row_ + column * view_.pixel;
      if (++x_ < x_axis_.pitch) continue;
      x_ = 0;
      if (++y_ == y_axis_.pitch) {
        y_ = 0;
        ++n_;
      }
      find_row();
    }
  }

 private:
  void find_row() {
    const int64_t row = n_ < images_ ? y_axis_.source(y_, phase_y_) : -1;
    row_ = row < 0 ? nullptr : view_.data + n_ * view_.image + row * view_.row;
  }

  const View16& view_;
  int64_t images_;
  const FlatAxis &y_axis_, &x_axis_;
  int64_t phase_y_, phase_x_, x_, y_, n_;
  const uint16_t* row_;
};

// Pairs of the next pixels, tile of channels by tile.
void interleave(FlatWalk& walk, const uint16_t* zeros, int64_t channels, int64_t blocks, uint16_t* pairs) {
  const uint16_t* pixels[kPairBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    walk.next(zeros, pixels);
    bf16_kernels().interleave_pixels(pixels, channels, pairs + b * kPairBlock * kGradientTile,
                                     blocks * kPairBlock * kGradientTile);
  }
}

}  // namespace

PairedWeightGradient::PairedWeightGradient(const ConvGeometry& g, std::array<int64_t, 2> in,
                                           std::array<int64_t, 2> padding)
    : g_(g),
      y_(in[0], g.out_height, g.kernel_h, g.stride_h, g.dilation_h, padding[0]),
      x_(in[1], g.out_width, g.kernel_w, g.stride_w, g.dilation_w, padding[1]),
      out_y_(g.out_height, g.out_height, 1, 1, 1, 0),
      out_x_(g.out_width, g.out_width, 1, 1, 1, 0),
      in_tiles_(divide_up(g.in_channels, kGradientTile)),
      out_tiles_(divide_up(g.out_channels, kGradientTile)),
      zeros_(static_cast<size_t>(std::max(g.in_channels, g.out_channels))) {
  out_y_.pitch = y_.pitch;
  out_x_.pitch = x_.pitch;
  farthest_ = y_.shift(g.kernel_h - 1) * x_.pitch + x_.shift(g.kernel_w - 1);
  find_taps();
  // A pair of pixels stays one under a single tap; vectors take it as well from there, in less time than
  // transposing takes.
  paired_ = !multiplies_by_tiles() && !folded_ && tap_shift_.size() == 1;
  cut();
}

// A phase holds every tap that has its remainder; the phases of no tap are left out.
void PairedWeightGradient::find_taps() {
  folded_ = g_.in_channels < kFewInputs && g_.stride_h * g_.stride_w > 1;
  std::vector<int64_t> index(static_cast<size_t>(g_.stride_h * g_.stride_w), -1);
  for (int64_t i = 0; i < g_.kernel_h; ++i)
    for (int64_t j = 0; j < g_.kernel_w; ++j) {
      int64_t& phase = index[y_.phase(i) * g_.stride_w + x_.phase(j)];
      if (phase < 0) {
        phase = static_cast<int64_t>(phases_.size());
        phases_.push_back({y_.phase(i), x_.phase(j)});
      }
      const int64_t shift = y_.shift(i) * x_.pitch + x_.shift(j);
      const auto known = folded_ ? std::find(tap_shift_.begin(), tap_shift_.end(), shift) : tap_shift_.end();
      kernel_phase_.push_back(phase);
      kernel_tap_.push_back(known - tap_shift_.begin());
      if (known != tap_shift_.end()) continue;
      tap_phase_.push_back(folded_ ? 0 : phase);
      tap_shift_.push_back(shift);
    }
  if (folded_) in_tiles_ = divide_up(static_cast<int64_t>(phases_.size()) * g_.in_channels, kGradientTile);
}

int64_t PairedWeightGradient::blocks_of(int64_t images) const {
  return divide_up(images * y_.pitch * x_.pitch, kPairBlock);
}

// The cut depends on the sizes alone.
void PairedWeightGradient::cut() {
  const int64_t sum_bytes = sums() * static_cast<int64_t>(sizeof(float)), blocks = blocks_of(g_.images);
  const int64_t phases = static_cast<int64_t>(phases_.size());
  const int64_t pixel_bytes = 2 * (phases * rows_of_phase(in_tiles_) + kGradientTile * (1 + out_tiles_));
  const int64_t bytes = sum_bytes > kNearSumBytes ? kLongStripBytes : kStripBytes;
  const int64_t pixels = std::max({bytes / pixel_bytes, 4 * farthest_, kNearPixels});
  strip_ = std::min(divide_up(pixels, kPairBlock), blocks);
  parts_ = std::clamp<int64_t>(kPartsBytes / sum_bytes, 1, std::min(kMostParts, divide_up(blocks, strip_)));
}

void PairedWeightGradient::run(const View16& input, const View16& grad, const at::Tensor& to) const {
  const at::Tensor memory = gradient_empty({parts_, sums()}, to.options());
  float* const all = memory.data_ptr<float>();
  parallel_team(g_.flops() < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    // Where there are fewer parts than threads, input channels are shared as well.
    const int64_t groups = folded_ ? 1 : std::min(in_tiles_, divide_up(team, parts_));
    const auto [begin, end] = share(parts_ * groups, 1, thread, team);
    {
      const TileUse tiles(true);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit / groups;
        const auto [first, last] =
            share(in_tiles_, 1, static_cast<int>(unit % groups), static_cast<int>(groups));
        const auto [block, block_end] =
            share(blocks_of(g_.images), 1, static_cast<int>(part), static_cast<int>(parts_));
        run_part({input, grad, g_.images, block, block_end - block, first, last, true, all + part * sums()});
      }
    }
    barrier.wait();
    finish(all, parts_, to, thread, team);
  });
}

void PairedWeightGradient::add_images(const View16& input, const View16& grad, int64_t images, bool first,
                                      float* sums) const {
  run_part({input, grad, images, 0, blocks_of(images), 0, in_tiles_, first, sums});
}

// In strips of equal length.
void PairedWeightGradient::run_part(Strip part) const {
  const int64_t begin = part.block, blocks = part.blocks, strips = divide_up(blocks, strip_);
  for (int64_t s = 0; s < strips; ++s) {
    part.block = begin + blocks * s / strips;
    part.blocks = begin + blocks * (s + 1) / strips - part.block;
    run_strip(part);
    part.first = false;
  }
}

void PairedWeightGradient::run_strip(const Strip& strip) const {
  const int64_t row_blocks = strip.blocks + divide_up(farthest_, kPairBlock);
  // An odd number of cache lines: rows of a tile lie in different sets.
  const int64_t row_step = kPairBlock * (row_blocks | 1),
                in_rows = rows_of_phase(strip.in_end - strip.in_begin);
  // A phase is written in whole tiles, whose last rows the next one takes.
  const int64_t rows = static_cast<int64_t>(phases_.size()) * in_rows + (folded_ ? kGradientTile : 0);
  const int64_t values = rows * row_step + out_tiles_ * kGradientTile * strip.blocks * kPairBlock;
  auto* const row = reinterpret_cast<uint16_t*>(thread_scratch(ScratchSlot::kGathered, divide_up(values, 2)));
  uint16_t* const pairs = row + rows * row_step;
  if (paired_) fill_row_pairs(strip, row);
  for (size_t phase = 0; phase < phases_.size() && !paired_; ++phase)
    fill_rows(strip, phase, row_blocks, row + static_cast<int64_t>(phase) * in_rows * row_step, row_step);
  fill_pairs(strip, pairs);
  std::vector<int64_t> tap;
  for (size_t t = 0; t < tap_phase_.size(); ++t)
    tap.push_back(tap_phase_[t] * in_rows * row_step + tap_shift_[t]);
  bf16_kernels().pair_gradient({row, row_step, paired_, pairs, strip.blocks * kPairBlock, kNearPixels,
                                strip.in_end - strip.in_begin, out_tiles_, channels_of(strip), tap.data(),
                                static_cast<int64_t>(tap.size()), strip.sums + strip.in_begin * tile_sums(),
                                in_tiles_ * tile_sums(), strip.first});
}

int64_t PairedWeightGradient::channels_of(const Strip& strip) const {
  if (folded_) return static_cast<int64_t>(phases_.size()) * g_.in_channels;
  return std::min(strip.in_end * kGradientTile, g_.in_channels) - strip.in_begin * kGradientTile;
}

void PairedWeightGradient::fill_rows(const Strip& strip, size_t phase, int64_t blocks, uint16_t* row,
                                     int64_t row_step) const {
  View16 view = strip.input;
  view.data += strip.in_begin * kGradientTile;
  const int64_t channels = folded_ ? g_.in_channels : channels_of(strip);
  FlatWalk walk(view, strip.images, y_, x_, phases_[phase][0], phases_[phase][1], strip.block * kPairBlock);
  const uint16_t* pixels[kPairBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    walk.next(zeros_.data(), pixels);
    bf16_kernels().transpose_pixels(pixels, channels, row + b * kPairBlock, row_step);
  }
}

void PairedWeightGradient::fill_row_pairs(const Strip& strip, uint16_t* pairs) const {
  View16 view = strip.input;
  view.data += strip.in_begin * kGradientTile;
  FlatWalk walk(view, strip.images, y_, x_, phases_[0][0], phases_[0][1], strip.block * kPairBlock);
  interleave(walk, zeros_.data(), channels_of(strip), strip.blocks, pairs);
}

void PairedWeightGradient::fill_pairs(const Strip& strip, uint16_t* pairs) const {
  FlatWalk walk(strip.grad, strip.images, out_y_, out_x_, 0, 0, strip.block * kPairBlock);
  interleave(walk, zeros_.data(), g_.out_channels, strip.blocks, pairs);
}

void PairedWeightGradient::finish(float* sums, int64_t parts, const at::Tensor& to, int thread,
                                  int team) const {
  const auto [first, last] = share(out_tiles_ * in_tiles_, 1, thread, team);
  for (int64_t tile = first; tile < last; ++tile) finish_tile(tile, sums, parts, to);
}

// `tile` counts tiles of input channels first.
void PairedWeightGradient::finish_tile(int64_t tile, float* all, int64_t parts, const at::Tensor& to) const {
  float* own = all + tile * tile_sums();
  for (int64_t part = 1; part < parts; ++part) {
    const float* other = own + part * sums();
    for (int64_t i = 0; i < tile_sums(); ++i) own[i] += other[i];
  }
  const int64_t out = tile / in_tiles_ * kGradientTile, in = tile % in_tiles_ * kGradientTile;
  if (folded_) return scatter_folded(own, tile % in_tiles_, out, to);
  const WeightStrides strides = weight_strides(to);
  kernels().scatter_kernels({own, kGradientTile, kGradientTile * kGradientTile, g_.kernel_h, g_.kernel_w,
                             std::min(kGradientTile, g_.in_channels - in),
                             std::min(kGradientTile, g_.out_channels - out),
                             to.data_ptr<float>() + out * strides.out + in * strides.in, strides.out,
                             strides.in, strides.row, strides.column});
}

// Rows of a tile: phase by phase, the channels of each.
void PairedWeightGradient::scatter_folded(const float* sums, int64_t in_tile, int64_t out,
                                          const at::Tensor& to) const {
  const WeightStrides strides = weight_strides(to);
  float* const weight = to.data_ptr<float>() + out * strides.out;
  const int64_t outs = std::min(kGradientTile, g_.out_channels - out);
  for (int64_t place = 0; place < g_.kernel_h * g_.kernel_w; ++place)
    for (int64_t c = 0; c < g_.in_channels; ++c) {
      const int64_t row = kernel_phase_[place] * g_.in_channels + c - in_tile * kGradientTile;
      if (row < 0 || row >= kGradientTile) continue;
      const float* from = sums + (kernel_tap_[place] * kGradientTile + row) * kGradientTile;
      float* at =
          weight + c * strides.in + place / g_.kernel_w * strides.row + place % g_.kernel_w * strides.column;
      for (int64_t o = 0; o < outs; ++o) at[o * strides.out] = from[o];
    }
}

bool pairs_serve_weight_gradient(const at::Tensor& weight) {
  return bf16_kernels().pair_gradient && (multiplies_by_tiles() || weight.size(1) >= kLeastInputs);
}

at::Tensor paired_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, const Conv2dParams& p) {
  if (!pairs_serve_weight_gradient(weight) || grad_output.numel() == 0) return {};
  const Images16 in = bring_in16(input, {}), grad = bring_in16(grad_output, {});
  const ConvGeometry g = group_geometry(grad_output, weight, p);
  const PairedWeightGradient gradient(g, {input.size(2), input.size(3)}, {p.padding[0], p.padding[1]});
  const at::Tensor wide = float_gradient_empty_like(weight);
  for (int64_t group = 0; group < p.groups; ++group) {
    View16 own_in = in.view, own_grad = grad.view;
    own_in.data += group * g.in_channels;
    own_grad.data += group * g.out_channels;
    gradient.run(own_in, own_grad, wide.narrow(0, group * g.out_channels, g.out_channels));
  }
  return wide.to(weight.scalar_type());
}

}  // namespace cnnfast::cpu
