// A convolution made ready for the kernels: geometry and memory strides in, kernel calls out. Shared by the
// operator `conv2d`, by `linear` and by the steps of a frozen network.
#pragma once
#include <utility>
#include <vector>

#include "cpu/conv_pack.h"

namespace cnnfast::cpu {

// Output pixels over all images, and panels of output channels. far_input: the input does not come from the
// second-level cache, however few the pixels.
struct ConvPart {
  int64_t pixel_begin, pixel_end, panel_begin, panel_end;
  bool far_input;
};

class ConvJob {
 public:
  // `input` holds the first tap of the first output pixel; pixels and padding lie around it in memory, and
  // what the algorithm reads beyond them (see overreach).
  // A prologue is for Winograd's algorithm alone; nothing around the image is read then.
  ConvJob(const ConvGeometry& geometry, View input, View output, View residual, Prologue prologue = {});

  // Runs the share of `thread` out of `team`.
  void run(const PackedConv& packed, int thread, int team) const;
  // The same on other memory of the same strides.
  void run_at(const PackedConv& packed, const float* input, float* output, const float* residual, int thread,
              int team) const;
  // The same as run_part of all panels, without a residual.
  void run_pixels(const PackedConv& packed, const float* input, float* output, int64_t begin, int64_t end,
                  bool far_input) const;
  // Part of a direct convolution of one group, by the calling thread alone.
  void run_part(const PackedConv& packed, const float* input, float* output, const float* residual,
                const ConvPart& part) const;
  // Part of a depthwise convolution: rows [row_begin, row_end) over all images, channels [first, last), of
  // which `first` begins a vector. The pointers are those of channel `first`.
  void run_depthwise_part(const PackedConv& packed, const float* input, float* output, const float* residual,
                          int64_t first, int64_t last, int64_t row_begin, int64_t row_end) const;
  // Whether each thread of a team takes its own output channels of a direct convolution, not its own pixels.
  bool split_by_channels(int team) const;
  // The same for every algorithm, and the channels [begin, end) of one thread where it is so.
  bool divides_channels(int team) const;
  std::pair<int64_t, int64_t> channels_of(int thread, int team) const;
  // Where the weights begin that a thread reads first.
  int64_t first_weight(int thread, int team) const;
  // Tiles of Winograd's algorithm that one pass over the weights serves.
  int64_t block_tiles() const { return winograd_block(false); }
  const ConvGeometry& geometry() const { return g_; }

 private:
  void run_dense(const PackedConv&, const float*, float*, const float*, int thread, int team) const;
  void run_winograd(const PackedConv&, const float*, float*, const float*, int thread, int team) const;
  void run_depthwise(const PackedConv&, const float*, float*, const float*, int thread, int team) const;
  ConvCall dense_call() const;
  DepthwiseCall depthwise_call() const;
  bool split_tiles_by_channels(int64_t tiles, int team) const;
  struct TileShare;
  TileShare tile_share(bool raw, int thread, int team) const;
  int64_t winograd_block(bool raw) const;

  ConvGeometry g_;
  View input_, output_, residual_;
  Prologue prologue_;
  Panels panels_;
  std::vector<int64_t> tap_;
  int64_t length_;
};

}  // namespace cnnfast::cpu
