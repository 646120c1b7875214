// Gradients of weights on bfloat16 tensors where instructions multiply pairs of bfloat16 values.
#pragma once
#include <array>
#include <vector>

#include "cpu/bf16_table.h"
#include "cpu/flat_pixels.h"
#include "cpu/images16.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Whether pairs serve: with such instructions, and enough input channels in a group. A tile takes as long for
// one channel as for sixteen, and few still take less time than without tiles.
bool pairs_serve_weight_gradient(const at::Tensor& weight);

// Of one group of channels. Sums lie in the order of PairGradientCall.
class PairedWeightGradient {
 public:
  // `in`: height and width of the input.
  PairedWeightGradient(const ConvGeometry& geometry, std::array<int64_t, 2> in,
                       std::array<int64_t, 2> padding);

  // In float32, with the strides of `to`; the result does not depend on the number of threads.
  void run(const View16& input, const View16& grad, const at::Tensor& to) const;

  // The same in parts, for who has them in cache: the sums of some images, added to `sums` or (`first`)
  // written there; and their end, which adds those of several parts. The calling thread has its tiles.
  int64_t sums() const { return in_tiles_ * out_tiles_ * tile_sums(); }
  void add_images(const View16& input, const View16& grad, int64_t images, bool first, float* sums) const;
  // Share `thread` of `team`. Overwrites the sums of the first part.
  void finish(float* sums, int64_t parts, const at::Tensor& to, int thread, int team) const;

 private:
  // A run of blocks of kPairBlock flat pixels and tiles of input channels.
  struct Strip {
    View16 input, grad;
    int64_t images;
    int64_t block, blocks;
    int64_t in_begin, in_end;
    bool first;
    float* sums;
  };
  void find_taps();
  void cut();
  int64_t tile_sums() const {
    return static_cast<int64_t>(tap_shift_.size()) * kGradientTile * kGradientTile;
  }
  int64_t blocks_of(int64_t images) const;
  void run_part(Strip part) const;
  void run_strip(const Strip& strip) const;
  int64_t channels_of(const Strip& strip) const;
  void fill_rows(const Strip& strip, size_t phase, int64_t blocks, uint16_t* row, int64_t row_step) const;
  void fill_row_pairs(const Strip& strip, uint16_t* pairs) const;
  void fill_pairs(const Strip& strip, uint16_t* pairs) const;
  void finish_tile(int64_t tile, float* sums, int64_t parts, const at::Tensor& to) const;
  void scatter_folded(const float* sums, int64_t in_tile, int64_t out, const at::Tensor& to) const;
  int64_t rows_of_phase(int64_t in_tiles) const {
    return folded_ ? g_.in_channels : in_tiles * kGradientTile;
  }

  ConvGeometry g_;
  FlatAxis y_, x_, out_y_, out_x_;
  bool paired_ = false;  // input in the order of the gradient
  bool folded_ = false;  // phases of few channels lie side by side in a tile, which takes their taps at once
  int64_t in_tiles_, out_tiles_;
  std::vector<uint16_t> zeros_;
  int64_t farthest_ = 0;                            // distance of the last tap
  std::vector<int64_t> kernel_phase_, kernel_tap_;  // of every place of the kernel
  std::vector<int64_t> tap_phase_, tap_shift_;      // of what the kernels call a tap
  std::vector<std::array<int64_t, 2>> phases_;
  int64_t strip_ = 0, parts_ = 0;  // blocks of a strip; parts of the pixels
};

// In the weight's type and layout, sums in float32, rounded once; undefined where pairs do not serve.
// Arguments must have passed check_conv2d_gradient.
at::Tensor paired_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, const Conv2dParams& params);

}  // namespace cnnfast::cpu
