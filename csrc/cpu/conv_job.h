// A convolution made ready for the kernels: geometry and memory strides in, kernel calls out. Shared by the
// operator `conv2d`, by `linear` and by the steps of a frozen network.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/conv_algorithm.h"
#include "cpu/kernel_table.h"

namespace cnnfast::cpu {

struct ConvGeometry {
  int64_t images, in_channels, out_channels, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t out_height, out_width;
  Activation activation;
  ConvAlgorithm algorithm{};
  bool far_input = false;  // a part of a larger input that does not stay in the second-level cache

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  bool depthwise() const { return groups > 1 && in_channels == groups && out_channels == groups; }
  // Groups of which a vector of channels holds several, computed side by side (see DepthwiseCall).
  bool narrow_groups() const;
  int64_t depth() const { return kernel_h * kernel_w * group_in(); }
  double flops() const;          // two per multiply-add
  int64_t packed_bytes() const;  // of the weights as the kernels read them
};

// 64-byte aligned floats.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t count);
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], Free> data_;
  int64_t size_;
};

// Weights in the order in which the kernels read them, with per-channel scale and shift (empty: none) padded
// to whole vectors.
struct PackedConv {
  PackedConv(const float* weight_, const AlignedFloats& scale_, const AlignedFloats& shift_)
      : weight(weight_), scale(scale_), shift(shift_) {}
  PackedConv(const AlignedFloats& weight_, const AlignedFloats& scale_, const AlignedFloats& shift_)
      : PackedConv(weight_.data(), scale_, shift_) {}
  PackedConv(const float* weight_, WeightStrides strides, const AlignedFloats& scale_,
             const AlignedFloats& shift_)
      : weight(weight_), raw(strides), scale(scale_), shift(shift_) {}
  const float* weight;
  std::optional<WeightStrides> raw;  // of weights that were not packed
  const AlignedFloats& scale;
  const AlignedFloats& shift;
};

// How the output channels of one group are cut into panels for the active instruction set.
struct Panels {
  int64_t vectors;  // per panel; the last panel may have fewer
  int64_t count;
  int64_t lanes() const { return vectors * kernels().vector_width; }
  static Panels of(int64_t channels);       // of direct convolutions
  static Panels of(const ConvGeometry& g);  // of its algorithm
};

// Weights of the PyTorch layout are given by strides (o, i, y, x), so that a linear layer over a flattened
// image (C, H, W order) can be read as a convolution. quick: Winograd's transform by float32 arithmetic,
// where it happens at every call; else in double, rounded once.
AlignedFloats pack_weight(const ConvGeometry& g, const float* weight, WeightStrides strides);
// The same into memory of packed_floats(g) floats, aligned to 64 bytes.
int64_t packed_floats(const ConvGeometry& g);
void pack_weight_into(const ConvGeometry& g, const float* weight, WeightStrides strides, float* packed,
                      bool quick = false);
// Whether weights that are used once had better not be packed: see PackedConv::raw.
bool takes_raw_weights(const ConvGeometry& g);
// Copies `values` (one per output channel, or null) for the kernels; null stays empty.
AlignedFloats pack_channels(const ConvGeometry& g, const float* values);

// Scratch memory of the calling thread, kept for its next call. Each user has a slot of its own.
enum class ScratchSlot { kWinograd, kStrip, kSums, kPacked, kWidened, kGathered, kCount };
float* thread_scratch(ScratchSlot slot, int64_t floats);

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
