#include "gpu/conv_shape.h"

#include <ATen/Context.h>

#include <algorithm>
#include <limits>

#include "gpu/nhwc.h"

namespace cnnfast::gpu {
namespace {

// Pixels and taps are counted in 32 bits inside the kernels; the margin keeps the last, partly empty tile
// from wrapping round.
constexpr int64_t kMostCounted = std::numeric_limits<int32_t>::max() - 1024;
constexpr double kBytesPerClock = 47;
constexpr double kMultiplyAddsPerClock = 1024;

}  // namespace

ConvShape::ConvShape(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef output,
                     const Conv2dParams& p)
    : batch(output[0]),
      in_h(input.size(2)),
      in_w(input.size(3)),
      out_h(output[2]),
      out_w(output[3]),
      in_channels(weight.size(1)),
      out_channels(output[1] / p.groups),
      kernel_h(weight.size(2)),
      kernel_w(weight.size(3)),
      groups(p.groups),
      stride{p.stride[0], p.stride[1]},
      padding{p.padding[0], p.padding[1]},
      dilation{p.dilation[0], p.dilation[1]} {}

std::string ConvShape::too_large() const {
  const int64_t padded_h = in_h + 2 * padding[0], padded_w = in_w + 2 * padding[1];
  const int64_t most =
      std::max({pixels(), batch * in_h * in_w, padded_h * padded_w, taps() * in_channels,
                taps() * out_channels, std::max(padded_h, padded_w) + std::max(stride[0], stride[1])});
  if (most <= kMostCounted) return "";
  return std::to_string(most) + " pixels or weights are more than the Triton kernels count";
}

double modelled_clocks(const Product& p, const Tile& t, bool across_taps, int item_size, int64_t parts,
                       int written, int processors) {
  const int64_t steps = across_taps ? divide_up(p.taps * p.length, t.k) : p.taps * divide_up(p.length, t.k);
  const int64_t programs = divide_up(p.rows, t.m) * divide_up(p.columns, t.n) * p.copies * parts;
  const double waves = static_cast<double>(divide_up(programs, processors));
  const double multiply = 1.0 * t.m * t.n * t.k * item_size / 2 / kMultiplyAddsPerClock;
  const double read = (1.0 * t.m + t.n) * t.k * item_size / kBytesPerClock;
  const double write = 1.0 * t.m * t.n * written / kBytesPerClock;
  return waves * (static_cast<double>(divide_up(steps, parts)) * std::max(multiply, read) + write);
}

int64_t constant_of(const Variant& variant, std::string_view name) {
  for (size_t i = 0; i < variant.parameter_count; ++i)
    if (variant.parameters[i].name == name) return variant.parameters[i].number;
  return 0;
}

Type type_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Type::kFloat32;
    case at::kHalf:
      return Type::kFloat16;
    case at::kBFloat16:
      return Type::kBFloat16;
    default:
      return Type::kNone;
  }
}

std::string_view precision_of(const at::Tensor& images) {
  const bool full =
      images.scalar_type() == at::kFloat && !at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  return full ? "ieee" : "tf32";
}

at::Tensor rows_of_weights(const at::Tensor& weight) {
  const NhwcTensor rows = as_nhwc(weight);
  return rows.stride == weight.size(1) ? rows.tensor : weight.clone(at::MemoryFormat::ChannelsLast);
}

}  // namespace cnnfast::gpu
