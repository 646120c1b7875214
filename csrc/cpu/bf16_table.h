// Kernels for values stored as bfloat16 (the upper half of a float32). A table of its own: what computes in
// float32 alone does not see it. Strides and offsets are counted in values of 2 bytes.
#pragma once
#include <stdint.h>

#include "cpu/depthwise16.h"
#include "cpu/fixed_winograd.h"
#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

// Output channels of a panel of packed weights, and of its halves; products of a dot product that lie
// together.
constexpr int64_t kPanelChannels = 32, kHalfPanel = 16, kPairBlock = 32;

// Pairs in 12 bits a value (short_pairs.h): values of a block and of a group; bytes of a line and of a coded
// group; exponents of a panel.
constexpr int64_t kShortBlock = kPairBlock * kHalfPanel, kShortGroup = 128;
constexpr int64_t kShortLine = 64, kShortGroupBytes = 3 * kShortLine, kShortExponents = 16;

// y = act(conv(x) + shift + residual) for one group, rounded once: see ConvCall for the stretches that a dot
// product runs over. Weights are packed as pairs: panel, block of 32 positions of the dot product, half
// panel, pair of positions, channel, position of the pair; with zeros behind the last position, and a last
// panel of at most 16 channels has one half.
struct Conv16Call {
  View16 input, output, residual;     // residual.data may be null
  const uint16_t *readable, *beyond;  // memory around the input: what lies outside is not touched
  int64_t images, height, width;      // of the output
  int64_t stride_h, stride_w;
  const int64_t* tap;
  int64_t taps, length;
  // The same for tiles: stretches of one pixel where its channels fill whole blocks.
  const int64_t* tile_tap;
  int64_t tile_taps, tile_length;
  const uint16_t* weight;
  bool short_pairs;      // weight is what short_pairs.h says
  bool interleaves;      // y's channels are written in turn with those of `residual`, which is not added
  const float* shift;    // padded to whole panels, or null
  int64_t channels;      // output channels
  int64_t block_pixels;  // output pixels worked on per pass over the panels where their values are gathered
  int64_t near_pixels;   // and where they are read from the image, at most: a multiple of 32
  void* scratch;         // conv_scratch bytes of the calling thread, aligned to a cache line
  Activation activation;
  // What a kernel of one pixel reads instead of x: act'(x * in_scale + in_shift), rounded. One per input
  // channel; null: x as it is. in_scale_image: from the factors of one image to the next one's; 0: the same.
  const float *in_scale, *in_shift;
  int64_t in_scale_image;
  Activation in_activation;
};

// Channels of a tile of a weight's gradient.
constexpr int64_t kGradientTile = 16;

// sums[c][t][o] += sum over pixels p of rows[c][p + tap[t]] * gradient[p][o], or begins there. `rows`: input
// channels, `row_step` values apart, pixels side by side; or (`paired`, for one tap at 0 and not for tiles)
// in the order of `pairs`. `pairs`: tile of output channels, pair of pixels, channel, pixel of the pair.
// sums: tile of output channels, tile of input channels, tap, input channel, output channel.
struct PairGradientCall {
  const uint16_t* rows;
  int64_t row_step;
  bool paired;
  const uint16_t* pairs;
  int64_t pixels;       // a multiple of 32
  int64_t near_pixels;  // of one pass over all taps, a multiple of 32
  int64_t in_tiles, out_tiles;
  int64_t channels;  // input channels: in a last tile, sums of others may be anything
  const int64_t* tap;
  int64_t taps;
  float* sums;
  int64_t out_step;  // from one tile of output channels to the next
  bool first;        // sums begin at zero
};

// The largest value of every window; NaN where there is one. The memory of `window` does not count, and it
// has no prologue.
struct MaxPool16Call {
  PoolCall window;
  View16 input, output;
  void* scratch;  // max_pool_scratch bytes of the calling thread, aligned to a cache line
};

// The mean of every window. The memory of `window` does not count; its prologue's activation is none, ReLU or
// clamping.
struct AvgPool16Call {
  PoolCall window;
  View16 input, output;
  void* scratch;  // avg_pool_scratch bytes of the calling thread, aligned to a cache line
};

// The gradient of max pooling, in float32. The views of the input and the output's gradient in `window` do
// not count.
struct MaxPoolBackward16Call {
  PoolBackwardCall window;
  View16 input, grad;
};

// The same where windows do not overlap and nothing is padded, in bfloat16. The window's views do not count.
struct MaxPoolApart16Call {
  PoolCall window;
  View16 input, grad, grad_input;

  static bool serves(const PoolCall& p) {
    return p.stride_h == p.kernel_h && p.stride_w == p.kernel_w && p.pad_h == 0 && p.pad_w == 0 &&
           p.dilation_h == 1 && p.dilation_w == 1 && p.height * p.kernel_h <= p.in_height &&
           p.width * p.kernel_w <= p.in_width && p.kernel_h * p.kernel_w <= INT16_MAX;
  }
};

// `pixels` pixels of `channels` adjacent values, `step` apart.
template <class T>
struct PixelRun {
  T* data;
  int64_t step;
};

// The gradient in front of an activation, from its output: rows of pixels, rounded (nothing is lost where the
// activation is ReLU).
struct ActivationBackward16 {
  PixelRun<const uint16_t> grad, output;  // output.data: null without an activation
  PixelRun<uint16_t> to;
  int64_t channels;
  Activation activation;
  float* sums;  // += the gradient of every channel, before it is rounded; or null
};

// y = act(x * scale + shift + residual): rows of pixels. Results and residuals are bfloat16 or float32.
template <class T>
struct Affine16Call {
  const uint16_t* input;
  const T* residual;  // or null
  T* output;
  const float *scale, *shift;
  int64_t input_stride, residual_stride, output_stride;
  int64_t channels;
  Activation activation;  // none, ReLU or clamping

  static bool serves(const Activation& a) {
    return a.kind == Activation::kNone || a.kind == Activation::kReLU || a.kind == Activation::kClamp;
  }
};

// Batch norm over rows of bfloat16: see KernelTable.
struct Norm16Kernels {
  void (*column_sum)(const uint16_t* x, int64_t stride, int64_t rows, int64_t channels, const float* mean,
                     float* sum);
  void (*column_distances)(const uint16_t* x, int64_t stride, int64_t rows, int64_t channels,
                           const float* from, float* sum);
  void (*affine)(const Affine16Call<uint16_t>&, int64_t rows);
  void (*affine_wide)(const Affine16Call<float>&, int64_t rows);
  void (*backward_sums)(const NormBackwardRows<uint16_t, uint16_t>&, int64_t rows, float* sum,
                        float* product);
  void (*backward)(const NormBackwardRows<uint16_t, uint16_t>&, int64_t rows);
  void (*backward_wide)(const NormBackwardRows<uint16_t, float>&, int64_t rows);
  void (*bn_act_backward)(const BnActBackwardRows<uint16_t, uint16_t>&, int64_t rows);
  void (*bn_act_backward_wide)(const BnActBackwardRows<uint16_t, float>&, int64_t rows);
};

// Winograd's algorithm with products of whole numbers.
struct FixedWinograd {
  // Tiles [tile_begin, tile_end) over all images, panels [panel_begin, panel_end).
  void (*run)(const FixedWinogradCall&, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
              int64_t panel_end);
  int64_t (*scratch)(const FixedWinogradCall&);  // floats
  void (*weights)(const FixedWeightsCall&);
};

struct Bf16Kernels {
  const char* name;
  bool multiplies;  // has instructions that multiply bfloat16
  void (*widen)(PixelRun<const uint16_t> from, PixelRun<float> to, int64_t pixels, int64_t channels);
  // To nearest, ties to even; NaN stays NaN.
  void (*narrow)(PixelRun<const float> from, PixelRun<uint16_t> to, int64_t pixels, int64_t channels);
  void (*activation_backward)(const ActivationBackward16&, int64_t pixels);
  void (*pixels_of_planes)(const PlanesCall<uint16_t>&, int64_t pixel_begin, int64_t pixel_end);
  const Norm16Kernels* norm;
  // Output pixels [pixel_begin, pixel_end) (over all images) of panels [panel_begin, panel_end).
  void (*conv)(const Conv16Call&, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
               int64_t panel_end);
  int64_t (*conv_scratch)(const Conv16Call&);
  int64_t short_pixels;  // of a register block where `conv` takes short pairs (short_pairs.h); 0: it does not
  // Of kPairBlock pixels, for gradients of weights; null where products of pairs are no instructions.
  // Channels up to a whole tile are zero.
  void (*transpose_pixels)(const uint16_t* const* pixels, int64_t channels, uint16_t* rows, int64_t row_step);
  void (*interleave_pixels)(const uint16_t* const* pixels, int64_t channels, uint16_t* pairs,
                            int64_t tile_step);
  void (*pair_gradient)(const PairGradientCall&);
  // Output rows [row_begin, row_end) over all images.
  void (*max_pool)(const MaxPool16Call&, int64_t row_begin, int64_t row_end);
  int64_t (*max_pool_scratch)(const MaxPool16Call&);
  void (*avg_pool)(const AvgPool16Call&, int64_t row_begin, int64_t row_end);
  int64_t (*avg_pool_scratch)(const AvgPool16Call&);
  // Input rows [row_begin, row_end) over all images.
  void (*max_pool_backward)(const MaxPoolBackward16Call&, int64_t row_begin, int64_t row_end);
  void (*max_pool_apart_backward)(const MaxPoolApart16Call&, int64_t row_begin, int64_t row_end);
  // Rows of the result over all images.
  void (*box_mean)(const BoxMeanCall<View16>&, int64_t row_begin, int64_t row_end);
  // Before the first and behind the last convolution of a thread: null where there is nothing to do.
  void (*begin_thread)();
  void (*end_thread)();
  // Output rows [row_begin, row_end) over all images; null where products of pairs are no instructions.
  void (*depthwise)(const Depthwise16Call&, int64_t row_begin, int64_t row_end);
  // Null where the set has no products of whole numbers, or better ones.
  const FixedWinograd* fixed = nullptr;
  bool interleaves = false;  // `conv` takes calls that do
};

// One per instruction set that was compiled.
extern const Bf16Kernels kPortableBf16Kernels, kAvx2Bf16Kernels, kAvx512Bf16Kernels, kAvx512VnniKernels,
    kAvx512WithBf16Kernels, kAmxBf16Kernels;

// Those of the set chosen for this process.
const Bf16Kernels& bf16_kernels();

// Whether products are those of tiles: several times as many a cycle as vectors of pairs give.
inline bool multiplies_by_tiles() { return bf16_kernels().begin_thread != nullptr; }

}  // namespace cnnfast::cpu
