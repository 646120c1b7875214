// Sizes of one convolution as the Triton kernels count them, shared by it and its gradients.
#pragma once
#include <string>

#include "gpu/triton/table.h"
#include "ops/conv2d.h"

namespace cnnfast::gpu {

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Channels are those of one group.
struct ConvShape {
  int64_t batch, in_h, in_w, out_h, out_w, in_channels, out_channels, kernel_h, kernel_w, groups;
  int64_t stride[2], padding[2], dilation[2];

  ConvShape(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef output, const Conv2dParams& p);
  int64_t pixels() const { return batch * out_h * out_w; }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t all_out_channels() const { return out_channels * groups; }
  bool pointwise() const { return taps() == 1 && padding[0] == 0 && padding[1] == 0; }
  // Why the kernels cannot count them in 32 bits, or "".
  std::string too_large() const;
};

// As cnnfast/triton/tiles.py has it: matrix products with long sums.
struct Product {
  int64_t rows, columns, length, taps, copies;
};

// Clocks by published rates, as cnnfast/triton/tiles.py counts them; only their order matters.
// parts: into which a sum over pixels is cut. written: bytes that are written per result.
double modelled_clocks(const Product& product, const Tile& tile, bool across_taps, int item_size,
                       int64_t parts, int written, int processors);

// The number that a variant was compiled with, as ACROSS_TAPS.
int64_t constant_of(const Variant& variant, std::string_view name);

Type type_of(const at::Tensor& t);
// "tf32" or "ieee" for products of float32; for narrower types the word means nothing.
std::string_view precision_of(const at::Tensor& images);
inline const void* address_of(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
// The weight with all that belongs to an output channel in one row: channels_last memory.
at::Tensor rows_of_weights(const at::Tensor& weight);

}  // namespace cnnfast::gpu
