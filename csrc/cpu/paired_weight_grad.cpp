#include "cpu/paired_weight_grad.h"

#include <ATen/Functions.h>

#include <array>

#include "cpu/conv16_job.h"
#include "cpu/flat_pixels.h"
#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

// Fewer input channels leave most rows of a tile empty.
constexpr int64_t kLeastInputs = 8;
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

// The gradient of one group's weights.
class PairGradient {
 public:
  PairGradient(const ConvGeometry& g, std::array<int64_t, 2> in, std::array<int64_t, 2> padding,
               const View16& input, const View16& grad)
      : g_(g),
        input_(input),
        grad_(grad),
        y_(in[0], g.out_height, g.kernel_h, g.stride_h, g.dilation_h, padding[0]),
        x_(in[1], g.out_width, g.kernel_w, g.stride_w, g.dilation_w, padding[1]),
        out_y_(g.out_height, g.out_height, 1, 1, 1, 0),
        out_x_(g.out_width, g.out_width, 1, 1, 1, 0),
        in_tiles_(divide_up(g.in_channels, kGradientTile)),
        out_tiles_(divide_up(g.out_channels, kGradientTile)),
        blocks_(divide_up(g.images * y_.pitch * x_.pitch, kPairBlock)),
        zeros_(static_cast<size_t>(std::max(g.in_channels, g.out_channels))) {
    out_y_.pitch = y_.pitch;
    out_x_.pitch = x_.pitch;
    farthest_ = y_.shift(g.kernel_h - 1) * x_.pitch + x_.shift(g.kernel_w - 1);
    find_taps();
    cut();
  }

  // In float32, with the strides of `to`.
  void run(const at::Tensor& to) {
    const at::Tensor sums = gradient_empty({parts_, part_sums()}, to.options());
    float* const all = sums.data_ptr<float>();
    parallel_team(g_.flops() < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
      // Where there are fewer parts than threads, input channels are shared as well.
      const int64_t groups = std::min(in_tiles_, divide_up(team, parts_));
      const auto [begin, end] = share(parts_ * groups, 1, thread, team);
      {
        const TileUse tiles(true);
        for (int64_t unit = begin; unit < end; ++unit) {
          const auto [first, last] =
              share(in_tiles_, 1, static_cast<int>(unit % groups), static_cast<int>(groups));
          run_part(unit / groups, first, last, all + unit / groups * part_sums());
        }
      }
      barrier.wait();
      const auto [first, last] = share(out_tiles_ * in_tiles_, 1, thread, team);
      for (int64_t tile = first; tile < last; ++tile) finish(tile, all, to);
    });
  }

 private:
  // A phase holds every tap that has its remainder; the phases of no tap are left out.
  void find_taps() {
    phase_index_.assign(static_cast<size_t>(g_.stride_h * g_.stride_w), -1);
    for (int64_t i = 0; i < g_.kernel_h; ++i)
      for (int64_t j = 0; j < g_.kernel_w; ++j) {
        const int64_t phase = y_.phase(i) * g_.stride_w + x_.phase(j);
        if (phase_index_[phase] < 0) {
          phase_index_[phase] = static_cast<int64_t>(phases_.size());
          phases_.push_back({y_.phase(i), x_.phase(j)});
        }
        tap_phase_.push_back(phase_index_[phase]);
        tap_shift_.push_back(y_.shift(i) * x_.pitch + x_.shift(j));
      }
  }

  int64_t tile_sums() const { return g_.kernel_h * g_.kernel_w * kGradientTile * kGradientTile; }
  int64_t part_sums() const { return in_tiles_ * out_tiles_ * tile_sums(); }

  // The cut depends on the sizes alone.
  void cut() {
    const int64_t sum_bytes = part_sums() * static_cast<int64_t>(sizeof(float));
    const int64_t pixel_bytes =
        2 * kGradientTile * (static_cast<int64_t>(phases_.size()) * in_tiles_ + out_tiles_);
    const int64_t bytes = sum_bytes > kNearSumBytes ? kLongStripBytes : kStripBytes;
    const int64_t pixels = std::max({bytes / pixel_bytes, 4 * farthest_, kNearPixels});
    strip_ = std::min(divide_up(pixels, kPairBlock), blocks_);
    parts_ =
        std::clamp<int64_t>(kPartsBytes / sum_bytes, 1, std::min(kMostParts, divide_up(blocks_, strip_)));
  }

  void run_part(int64_t part, int64_t in_begin, int64_t in_end, float* sums) const {
    const auto [begin, end] = share(blocks_, 1, static_cast<int>(part), static_cast<int>(parts_));
    // Strips of equal length.
    const int64_t strips = divide_up(end - begin, strip_);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t first = begin + (end - begin) * s / strips,
                    last = begin + (end - begin) * (s + 1) / strips;
      run_strip(first, last - first, in_begin, in_end, s == 0, sums);
    }
  }

  void run_strip(int64_t block, int64_t blocks, int64_t in_begin, int64_t in_end, bool first,
                 float* sums) const {
    const int64_t row_blocks = blocks + divide_up(farthest_, kPairBlock);
    // An odd number of cache lines: rows of a tile lie in different sets.
    const int64_t row_step = kPairBlock * (row_blocks | 1), in_rows = (in_end - in_begin) * kGradientTile;
    const int64_t rows = static_cast<int64_t>(phases_.size()) * in_rows;
    const int64_t values = rows * row_step + out_tiles_ * kGradientTile * blocks * kPairBlock;
    auto* const row =
        reinterpret_cast<uint16_t*>(thread_scratch(ScratchSlot::kGathered, divide_up(values, 2)));
    uint16_t* const pairs = row + rows * row_step;
    for (size_t phase = 0; phase < phases_.size(); ++phase)
      fill_rows(phase, block, row_blocks, in_begin, in_end,
                row + static_cast<int64_t>(phase) * in_rows * row_step, row_step);
    fill_pairs(block, blocks, pairs);
    std::vector<int64_t> tap;
    for (size_t t = 0; t < tap_phase_.size(); ++t)
      tap.push_back(tap_phase_[t] * in_rows * row_step + tap_shift_[t]);
    const PairGradientCall call{row,
                                row_step,
                                pairs,
                                blocks * kPairBlock,
                                kNearPixels,
                                in_end - in_begin,
                                out_tiles_,
                                tap.data(),
                                static_cast<int64_t>(tap.size()),
                                sums + in_begin * tile_sums(),
                                in_tiles_ * tile_sums(),
                                first};
    bf16_kernels().pair_gradient(call);
  }

  void fill_rows(size_t phase, int64_t block, int64_t blocks, int64_t in_begin, int64_t in_end, uint16_t* row,
                 int64_t row_step) const {
    View16 view = input_;
    view.data += in_begin * kGradientTile;
    const int64_t channels = std::min(in_end * kGradientTile, g_.in_channels) - in_begin * kGradientTile;
    FlatWalk walk(view, g_.images, y_, x_, phases_[phase][0], phases_[phase][1], block * kPairBlock);
    const uint16_t* pixels[kPairBlock];
    for (int64_t b = 0; b < blocks; ++b) {
      walk.next(zeros_.data(), pixels);
      bf16_kernels().transpose_pixels(pixels, channels, row + b * kPairBlock, row_step);
    }
  }

  void fill_pairs(int64_t block, int64_t blocks, uint16_t* pairs) const {
    FlatWalk walk(grad_, g_.images, out_y_, out_x_, 0, 0, block * kPairBlock);
    const uint16_t* pixels[kPairBlock];
    for (int64_t b = 0; b < blocks; ++b) {
      walk.next(zeros_.data(), pixels);
      bf16_kernels().interleave_pixels(pixels, g_.out_channels, pairs + b * kPairBlock * kGradientTile,
                                       blocks * kPairBlock * kGradientTile);
    }
  }

  // One tile of output and input channels, of all parts: `tile` counts input tiles first.
  void finish(int64_t tile, float* sums, const at::Tensor& to) const {
    float* own = sums + tile * tile_sums();
    for (int64_t part = 1; part < parts_; ++part) {
      const float* other = own + part * part_sums();
      for (int64_t i = 0; i < tile_sums(); ++i) own[i] += other[i];
    }
    const int64_t out = tile / in_tiles_ * kGradientTile, in = tile % in_tiles_ * kGradientTile;
    const WeightStrides strides = weight_strides(to);
    kernels().scatter_kernels({own, kGradientTile, kGradientTile * kGradientTile, g_.kernel_h, g_.kernel_w,
                               std::min(kGradientTile, g_.in_channels - in),
                               std::min(kGradientTile, g_.out_channels - out),
                               to.data_ptr<float>() + out * strides.out + in * strides.in, strides.out,
                               strides.in, strides.row, strides.column});
  }

  ConvGeometry g_;
  View16 input_, grad_;
  FlatAxis y_, x_, out_y_, out_x_;
  int64_t in_tiles_, out_tiles_;
  int64_t blocks_;  // of pixels, all of them
  std::vector<uint16_t> zeros_;
  int64_t farthest_ = 0;  // distance of the last tap
  std::vector<int64_t> phase_index_, tap_phase_, tap_shift_;
  std::vector<std::array<int64_t, 2>> phases_;
  int64_t strip_ = 0, parts_ = 0;  // blocks of a strip; parts of the pixels
};

}  // namespace

at::Tensor paired_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, const Conv2dParams& p) {
  if (!bf16_kernels().pair_gradient || weight.size(1) < kLeastInputs || grad_output.numel() == 0) return {};
  const Images16 in = bring_in16(input, {}), grad = bring_in16(grad_output, {});
  const ConvGeometry g = group_geometry(grad_output, weight, p);
  const at::Tensor wide = at::empty_like(weight, weight.options().dtype(at::kFloat));
  for (int64_t group = 0; group < p.groups; ++group) {
    View16 own_in = in.view, own_grad = grad.view;
    own_in.data += group * g.in_channels;
    own_grad.data += group * g.out_channels;
    PairGradient(g, {input.size(2), input.size(3)}, {p.padding[0], p.padding[1]}, own_in, own_grad)
        .run(wide.narrow(0, group * g.out_channels, g.out_channels));
  }
  return wide.to(weight.scalar_type());
}

}  // namespace cnnfast::cpu
