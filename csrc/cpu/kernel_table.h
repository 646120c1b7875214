// Plain structs between the tensor code and the kernels. Kernels are compiled once per instruction set and
// reached through one KernelTable each; neither side includes the other. All strides and offsets are counted
// in floats.
#pragma once
#include <stdint.h>

#include "activation.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

// An NHWC image batch in memory; channels are adjacent. A slice of a concatenation is a View whose pixel
// stride is larger than its channel count.
struct View {
  float* data;
  int64_t image;  // distance of two images
  int64_t row;    // distance of two rows
  int64_t pixel;  // distance of two pixels of a row
};

// y = act(conv(x) * scale + shift + residual) for one group, or a linear layer (one pixel per row of the
// batch). The input is padded already: every tap of every output pixel lies in memory. A dot product runs
// over `taps` stretches of `length` adjacent floats: the stretch is one kernel row (kernel width times
// channels) where pixels are adjacent and dilation is 1, and one kernel position otherwise.
struct ConvCall {
  View input, output, residual;   // residual.data may be null
  int64_t images, height, width;  // of the output
  int64_t stride_h, stride_w;
  const int64_t* tap;  // offset of each stretch from the pixel's first one
  int64_t taps, length;
  const float* weight;    // packed: panel, stretch, position in the stretch, channel in the panel
  const float* scale;     // padded to whole vectors, or null
  const float* shift;     // padded to whole vectors, or null
  int64_t channels;       // output channels
  int64_t panel_vectors;  // vectors of output channels in a panel (the last panel may have fewer)
  int64_t chunk;  // floats of a stretch sequence worked on per pass over a block (weights stay in cache)
  int64_t block_pixels;  // output pixels worked on per pass over the panels
  bool far_input;        // does not stay in the second-level cache, however few its pixels
  Activation activation;
};

// What happens to an input on its way into a layer: act(x * scale + shift), with zeros around the image
// behind it. Row y and column x of the padded image hold pixel (y - top, x - left) of the image; memory
// around the image is not read.
struct Prologue {
  const float* scale;  // one per channel; null: no prologue
  const float* shift;
  Activation activation;
  int64_t top, left, height, width;
};

// Where weight (o, i, y, x) lies, as element strides.
struct WeightStrides {
  int64_t out, in, row, column;
};

// Kernels of `inputs` input channels by `lanes` output channels, beginning at `weight`:
// to[i * step + position * tap_step + lane], lanes up to whole vectors, those beyond `lanes` zero.
struct KernelGather {
  const float* weight;
  int64_t out, in, row, column;  // strides
  int64_t height, width;         // of a kernel
  int64_t inputs, lanes;
  float* to;
  int64_t step, tap_step;
};

// The way back, without the lanes that do not exist.
struct KernelScatter {
  const float* from;
  int64_t step, tap_step;
  int64_t height, width;
  int64_t inputs, lanes;
  float* weight;
  int64_t out, in, row, column;
};

// The same for square kernels, stride 1, dilation 1, one group, by Winograd's algorithm: tiles of tile x tile
// output pixels from points x points input pixels, all of which must lie in memory for every tile, also for
// one that reaches over the output's right or lower end. For kernels of one row, tiles of one row
// (tile_height).
struct WinogradCall {
  View input, output, residual;  // residual.data may be null
  int64_t height, width;         // of the output
  // Of dilated kernels: the pixels of one tile are `step` apart, as are those of the views above, and tiles
  // begin at every one of the first step x step pixels.
  int64_t step = 1;
  int64_t tile_rows, tile_columns;
  int64_t points, tile, tile_height;
  int64_t in_channels, channels;
  const float* weight;  // packed: point, panel, input channel, channel in the panel; or as `raw` says
  // Strides of weights that were not packed: they are transformed on their way into the products, once per
  // block of tiles. Null: packed.
  const WeightStrides* raw;
  const float* scale;  // padded to whole vectors, or null
  const float* shift;  // padded to whole vectors, or null
  int64_t panel_vectors;
  int64_t block_tiles;  // tiles worked on at once
  float* scratch;       // winograd_scratch floats, aligned to a vector
  Prologue prologue;
  Activation activation;
  bool far_input;  // does not stay in the second-level cache, however few its pixels
};

// The transform of `lanes` kernels of size x size weights, kernels[(y * size + x) * lanes + lane], of as many
// input channels as `inputs` says: writes the lanes of each of the points x points places, `step` floats
// apart, and of the next input channel behind them. In double, rounded once; by float32 arithmetic where
// `quick`. line: kernels of one row, `size` weights, to as many places as there are points.
struct WinogradWeightsCall {
  const double* matrix;  // points x size
  int64_t points, size, lanes;
  int64_t inputs;
  const float* kernels;
  float* output;
  int64_t step;
  bool quick;
  bool line = false;
};

// Convolution in groups of as many input as output channels, of which a vector holds several: depthwise ones,
// whose output channel c reads input channel c alone, and groups of 4 or 8. weight: vector of channels,
// position, input channel of the group, lane; lanes beyond the last channel are zero.
struct DepthwiseCall {
  View input, output, residual;
  int64_t height, width, stride_h, stride_w;
  const int64_t* tap;
  int64_t taps;
  int64_t row_taps;  // positions of a kernel row where they are neighbouring pixels, else 0
  int64_t group;     // channels of a group
  const float* weight;
  const float* scale;
  const float* shift;
  int64_t channels;
  Activation activation;
};

// Adjacent floats in far memory.
struct FarFloats {
  const float* data;
  int64_t count;
};

// The gradient of a convolution's weight, one group: sums[position][channel] over all output pixels of the
// input value at that kernel position times the gradient of the output channel.
struct WeightGradCall {
  View input, grad;
  int64_t images, height, width;  // of the output
  int64_t stride_h, stride_w;
  const int64_t* offset;  // of every position (row, column, channel) from the pixel's first one
  int64_t positions;
  int64_t channels;  // of the output
  int64_t panel_vectors;
  float* sums;                  // as packed weights lie: panel, position, channel in the panel
  bool adds = false;            // to sums that are there; else they begin at zero
  int64_t first = 0, last = 0;  // output pixels over all images; last 0: all
  // What the next call reads and writes, fetched into the second-level cache meanwhile.
  static constexpr int kAhead = 4;
  FarFloats ahead[kAhead]{};
};

// The same for square kernels, stride 1, dilation 1, by Winograd's algorithm, tile by tile of
// points - kernel + 1 gradients a side. Every input pixel of every tile must lie in memory. Tiles are worked
// on in strips; the sums of a block of kGradientChannels input channels by a panel of output channels lie
// together.
struct WinogradGradCall {
  View input, grad;
  int64_t images, height, width;  // of the output
  int64_t kernel, points;
  int64_t in_channels, channels;
  int64_t panel_vectors;
  int64_t strip_tiles;  // tiles worked on at once
  float* sums;         // winograd_gradient_sums floats of the calling thread; not used where one strip is all
  float* scratch;      // winograd_gradient_scratch floats of the calling thread
  float* weight_grad;  // the result
  WeightStrides strides;
  bool adds = false;     // to the sums of a call before
  bool finishes = true;  // else the result is not written, and the sums stay for the next call

  bool keeps_sums(int64_t tiles) const { return strip_tiles < tiles || adds || !finishes; }
};

struct PoolCall {
  View input, output;
  int64_t channels;
  int64_t in_height, in_width, height, width;  // height, width: of the output
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool count_include_pad;
  int64_t divisor_override;  // 0: none
  int64_t padded_height,
      padded_width;     // input plus padding, without what ceil_mode adds (average pooling's divisor)
  Prologue prologue{};  // scale, shift and activation alone
};

// The gradient of pooling: pool.input is the input (average pooling's is not read), pool.output is not used;
// rows of grad_input are dense.
struct PoolBackwardCall {
  PoolCall pool;
  View grad;  // of the output
  View grad_input;
};

// Along one side of an image: position i of a result is the sum of positions (i * scale + first) / distance,
// rounded up, to (i * scale + last) / distance of what is read, as far as there are such.
struct BoxAxis {
  int64_t size, result;  // positions read, and of the result
  int64_t scale, first, last, distance;
};

// Sums over boxes of pixels, divided: average pooling and its gradient.
struct BoxMean {
  int64_t channels;
  BoxAxis y, x;
  float divisor;
};

// Pixels lie side by side, as their channels do. V: View or View16.
template <class V>
struct BoxMeanCall {
  BoxMean box;
  V from, to;
};

// Values that are summed at once: a few pixels of a box fit. Positions along a row at most.
constexpr int64_t kBoxValues = 4096, kBoxColumns = 1024;

// y = act((x * scale + shift) * factor + residual), rows of `channels` floats; all but x may be null.
struct AffineCall {
  const float* input;
  const float* residual;
  float* output;
  const float* scale;
  const float* shift;
  int64_t input_stride, residual_stride, output_stride;
  int64_t channels;
  Activation activation;
  const float* factor = nullptr;
  int64_t factor_stride = 0;
  // One number per row.
  const float* row_factor = nullptr;
  const float* row_shift = nullptr;
  int64_t row_step = 0;
};

// Local response normalisation: y = x / (k + alpha / size * s)^beta per pixel, s the sum of x * x over `size`
// channels around (size / 2 before, (size - 1) / 2 behind; none beyond the ends).
struct LrnCall {
  View input, output;
  int64_t channels, height, width;
  int64_t size;
  float alpha, beta, k;
};

// Its gradient, written to norm.output.
struct LrnBackwardCall {
  LrnCall norm;
  View grad;
  float* scratch;  // 2 * channels floats for the calling thread alone
};

// The gradient of y = act((x - mean) * slope + shift + residual), rows of `channels` values of type X, float
// or bfloat16. With g the gradient before the activation: grad_input = g * slope + (x - mean) * tilt +
// offset, grad_residual = g. The activation's own follows from y, or from act's argument computed again.
template <class X, class Y>
struct NormBackwardRows {
  const X* grad;
  const X* output;   // y; not read where there is no activation
  const X* input;    // x; not read for grad_input where there is no tilt
  Y* grad_input;     // or null
  X* grad_residual;  // or null
  const float* mean;
  const float* slope;  // null: 1
  const float* tilt;   // null, like offset, where the statistics do not depend on x
  const float* offset;
  int64_t grad_stride, output_stride, input_stride;  // results have rows of `channels` values
  int64_t channels;
  Activation activation;
  // Where there is a scale, act's argument is x * scale + again_shift, and y is not read.
  const float *scale = nullptr, *again_shift = nullptr;
};
using NormBackwardCall = NormBackwardRows<float, float>;

// Backward of a = act(x * scale + shift) per channel, a computed again: with dz = grad_activated * act'(a),
// grad_input += dz * scale, sum += dz, product += dz * (x - mean). Strides are those of pixels, X and D are
// float or bfloat16.
template <class X, class D>
struct BnActBackwardRows {
  const D* grad_activated;
  const X* input;
  float* grad_input;
  const float* scale;
  const float* shift;
  const float* mean;
  float* sum;
  float* product;
  int64_t grad_activated_stride, input_stride, grad_input_stride;
  int64_t channels;
  Activation activation;
};
using BnActBackwardCall = BnActBackwardRows<float, float>;

// y = act((x - mean) / sqrt(var + eps) * weight + bias): statistics of each pixel over its channels, or of
// each image over the pixels and channels of a group. weight and bias may be null.
struct NormCall {
  View input, output;
  int64_t channels, height, width, groups;
  const float* weight;
  const float* bias;
  float eps;
  Activation activation;
};

// An image's planes, `plane` values from one to the next, as pixels of adjacent channels that lie side by
// side.
template <class T>
struct PlanesCall {
  const T* from;
  int64_t plane, channels, pixels;
  T* to;

  static constexpr int64_t kAhead = 128 / sizeof(T);  // values that are fetched ahead
};

// One row of bilinear interpolation between two rows of the input.
struct BlendCall {
  const float* upper;
  const float* lower;
  float below;           // weight of the lower row
  const int64_t* first;  // per output pixel: offsets of the left and right pixel in a row
  const int64_t* second;
  const float* right;  // per output pixel: weight of the right one
  float* output;
  int64_t pixel, width, channels;
};

// One row of a channel shuffle: output channel j * parts + i is channel j of part i.
struct InterleaveCall {
  int64_t parts, channels, width;  // channels of each part
  const int64_t* step;             // of each part: distance of two pixels
  float* output;
  int64_t pixel;
};

// The gradient of a depthwise convolution's weight, one channel of output for each of input.
struct DepthwiseGradCall {
  View input, grad;
  View16 input16, grad16;  // where the others have no data
  int64_t images, channels;
  int64_t in_height, in_width, height, width;  // the last two of the output
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  float* to;
  int64_t to_channel, to_row, to_column;  // strides
  int64_t strip;                          // rows of the output that are worked on at once
  float* scratch;                         // depthwise_gradient_scratch floats of the calling thread
};

// y = x @ weight.T: x is rows x in, weight out x in, y rows x out, all contiguous.
struct LinearCall {
  const float* x;
  const float* weight;
  float* y;
  int64_t rows, in, out;
  float* scratch;  // linear_scratch floats of the calling thread
};

// The gradient of x from that of y, or of the weight from that of y and x. grad: out x rows. to: rows x in,
// or out x in.
struct LinearGradCall {
  const float* grad;
  const float* x;
  const float* weight;
  float* to;
  int64_t rows, in, out;
  float* scratch;  // of the calling thread; not for the weight's gradient
};

// Floats that the measuring kernels work on at once, at most.
constexpr int64_t kLimitFloats = 256;

struct KernelTable {
  const char* name;
  int64_t vector_width;                           // floats
  int64_t panel_vectors;                          // most of a panel of the direct convolution kernels
  int64_t max_panel_vectors;                      // the same where that leaves one with a single vector
  int64_t max_winograd_vectors;                   // and of Winograd's
  int64_t (*tile_pixels)(int64_t panel_vectors);  // output pixels of one register block

  // Output pixels [pixel_begin, pixel_end) (over all images) of panels [panel_begin, panel_end).
  void (*conv)(const ConvCall&, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
               int64_t panel_end);
  // Tiles [tile_begin, tile_end) over all images.
  void (*winograd)(const WinogradCall&, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                   int64_t panel_end);
  int64_t (*winograd_scratch)(const WinogradCall&, int64_t panels);
  int64_t (*winograd_rows)(int64_t panel_vectors);  // tiles of one register block
  void (*winograd_weights)(const WinogradWeightsCall&);
  void (*gather_kernels)(const KernelGather&);
  void (*scatter_kernels)(const KernelScatter&);
  // Units are parts of the weight; every one takes all pixels.
  void (*weight_gradient)(const WeightGradCall&, int64_t unit_begin, int64_t unit_end);
  int64_t (*gradient_units)(int64_t channels, int64_t panel_vectors, int64_t positions);
  // Input channels [in_begin, in_end).
  void (*winograd_gradient)(const WinogradGradCall&, int64_t in_begin, int64_t in_end);
  int64_t (*winograd_gradient_scratch)(const WinogradGradCall&, int64_t in_channels);
  int64_t (*winograd_gradient_sums)(const WinogradGradCall&, int64_t in_channels);
  // Output rows [row_begin, row_end) over all images.
  void (*depthwise)(const DepthwiseCall&, int64_t row_begin, int64_t row_end);
  // Vectors of channels [vector_begin, vector_end), all pixels of each.
  void (*depthwise_gradient)(const DepthwiseGradCall&, int64_t vector_begin, int64_t vector_end);
  int64_t (*depthwise_gradient_scratch)(const DepthwiseGradCall&);
  void (*max_pool)(const PoolCall&, int64_t row_begin, int64_t row_end);
  void (*avg_pool)(const PoolCall&, int64_t row_begin, int64_t row_end);
  // Input rows [row_begin, row_end) over all images.
  void (*max_pool_backward)(const PoolBackwardCall&, int64_t row_begin, int64_t row_end);
  void (*avg_pool_backward)(const PoolBackwardCall&, int64_t row_begin, int64_t row_end);
  // Rows of the result over all images.
  void (*box_mean)(const BoxMeanCall<View>&, int64_t row_begin, int64_t row_end);
  void (*affine)(const AffineCall&, int64_t rows);
  // sum[c] += x[r][c], and with `mean`: sum[c] += (x[r][c] - mean[c])^2, over `rows` rows.
  void (*column_sum)(const float* x, int64_t stride, int64_t rows, int64_t channels, const float* mean,
                     float* sum);
  // sum[c] += x[r][c] - from[c], over `rows` rows.
  void (*column_distances)(const float* x, int64_t stride, int64_t rows, int64_t channels, const float* from,
                           float* sum);
  void (*activate)(float* x, int64_t count, Activation);
  // Pixels [pixel_begin, pixel_end) of an image.
  void (*pixels_of_planes)(const PlanesCall<float>&, int64_t pixel_begin, int64_t pixel_end);
  // Output rows [row_begin, row_end) over all images.
  void (*lrn)(const LrnCall&, int64_t row_begin, int64_t row_end);
  void (*lrn_backward)(const LrnBackwardCall&, int64_t row_begin, int64_t row_end);
  // sum[c] += g, product[c] += g * (x - mean[c]), over `rows` rows.
  void (*norm_backward_sums)(const NormBackwardCall&, int64_t rows, float* sum, float* product);
  void (*norm_backward)(const NormBackwardCall&, int64_t rows);
  void (*bn_act_backward)(const BnActBackwardCall&, int64_t rows);
  // Output rows [row_begin, row_end) over all images; the windows follow from the sizes alone.
  void (*adaptive_max_pool)(const PoolCall&, int64_t row_begin, int64_t row_end);
  void (*adaptive_avg_pool)(const PoolCall&, int64_t row_begin, int64_t row_end);
  // The mean over all pixels of one image.
  void (*image_mean)(const PoolCall&, int64_t image, int64_t channel_begin, int64_t channel_end);
  // Rows over all images.
  void (*layer_norm)(const NormCall&, int64_t row_begin, int64_t row_end);
  // Groups over all images.
  void (*group_norm)(const NormCall&, int64_t unit_begin, int64_t unit_end);
  void (*blend_row)(const BlendCall&);
  void (*interleave_row)(const InterleaveCall&, const float* const* parts);
  void (*prelu_pixels)(const float* in, int64_t in_pixel, const float* slope, float* out, int64_t out_pixel,
                       int64_t pixels, int64_t channels);
  // The largest channel of each pixel; NaN where one is.
  void (*channel_max)(const float* in, int64_t in_pixel, int64_t pixels, int64_t channels, float* out,
                      int64_t out_pixel);
  int64_t (*linear_scratch)(int64_t rows);
  // Output features [out_begin, out_end); of the input's gradient, input features.
  void (*linear)(const LinearCall&, int64_t out_begin, int64_t out_end);
  void (*linear_input_grad)(const LinearGradCall&, int64_t in_begin, int64_t in_end);
  void (*linear_weight_grad)(const LinearGradCall&, int64_t out_begin, int64_t out_end);
  // For measuring the machine. Multiply-adds on kLimitFloats values, in registers; gives the operations done.
  double (*multiply_adds)(float* sums, int64_t rounds);
  // The sum of `count` floats, a multiple of kLimitFloats: as fast as they can be read.
  float (*read_all)(const float* x, int64_t count);
};

// One per instruction set that was compiled.
extern const KernelTable kPortableKernels, kAvx2Kernels, kAvx512Kernels;

// The set chosen for this process: the best that the CPU runs, or CNNFAST_CPU_ISA.
const KernelTable& kernels();

}  // namespace cnnfast::cpu
