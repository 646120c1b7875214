#include "gpu/conv2d_triton.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <limits>

#include "gpu/nhwc.h"
#include "gpu/stream.h"
#include "gpu/triton/launch.h"

namespace cnnfast::gpu {
namespace {

constexpr size_t kMostChoices = 3;  // to be timed at the first call with a shape
// Pixels and taps are counted in 32 bits inside the kernel; the margin keeps the last, partly empty tile from
// wrapping round.
constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max() - 1024;

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

struct Sizes {
  int64_t batch, in_h, in_w, out_h, out_w, in_channels, out_channels, kernel_h, kernel_w,
      groups;  // of one group

  Sizes(const Conv2dArgs& a, at::IntArrayRef output)
      : batch(output[0]),
        in_h(a.input.size(2)),
        in_w(a.input.size(3)),
        out_h(output[2]),
        out_w(output[3]),
        in_channels(a.weight.size(1)),
        out_channels(output[1] / a.params.groups),
        kernel_h(a.weight.size(2)),
        kernel_w(a.weight.size(3)),
        groups(a.params.groups) {}

  int64_t pixels() const { return batch * out_h * out_w; }
  int64_t taps() const { return kernel_h * kernel_w; }
};

std::string too_large(const Sizes& s, const Conv2dParams& p) {
  const int64_t padded_h = s.in_h + 2 * p.padding[0], padded_w = s.in_w + 2 * p.padding[1];
  const int64_t most = std::max({s.pixels(), padded_h * padded_w, s.taps() * s.in_channels,
                                 std::max(padded_h, padded_w) + std::max(p.stride[0], p.stride[1])});
  if (most <= kMaxCount) return "";
  return std::to_string(most) + " pixels or weights are more than the Triton kernels count";
}

std::string_view precision_of(const at::Tensor& input) {
  const bool full =
      input.scalar_type() == at::kFloat && !at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  return full ? "ieee" : "tf32";
}

// The tensors of a call where the kernel can read them. They stay until the kernel is in the stream: the
// allocator gives memory back in the stream's order.
struct Operands {
  NhwcTensor input, weight, residual{at::Tensor(), 0};
  at::Tensor bias, scale;

  Operands(const Conv2dArgs& a, bool filled) : input(as_nhwc(a.input)), weight(as_nhwc(a.weight)) {
    if (weight.stride !=
        a.weight.size(1))  // a slice: the kernel wants an output channel's weights in one row
      weight.tensor = a.weight.clone(at::MemoryFormat::ChannelsLast);
    if (present(a.residual)) residual = as_nhwc(*a.residual);
    const auto options = a.input.options().dtype(at::kFloat);
    const int64_t channels = a.weight.size(0);
    // Vectors with an element per channel are float32 in every variant.
    if (present(a.bias))
      bias = a.bias->to(at::kFloat).contiguous();
    else if (filled)
      bias = at::zeros({channels}, options);
    if (present(a.scale))
      scale = a.scale->to(at::kFloat).contiguous();
    else if (filled)
      scale = at::ones({channels}, options);
  }
};

const void* data(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

Arguments arguments_of(const Conv2dArgs& a, const Sizes& s, const Operands& o, const void* output,
                       int64_t output_stride) {
  const Type type = type_of(a.input);
  const Conv2dParams& p = a.params;
  Arguments arguments;
  arguments.tensor("x_ptr", type, data(o.input.tensor))
      .tensor("w_ptr", type, data(o.weight.tensor))
      .tensor("y_ptr", type, output)
      .tensor("residual_ptr", type, data(o.residual.tensor))
      .tensor("bias_ptr", Type::kFloat32, data(o.bias))
      .tensor("scale_ptr", Type::kFloat32, data(o.scale))
      .tensor("pre_scale_ptr", Type::kFloat32, nullptr)
      .tensor("pre_shift_ptr", Type::kFloat32, nullptr)
      .tensor("parts_ptr", Type::kFloat32, nullptr)
      .number("pixels", s.pixels())
      .number("in_h", s.in_h)
      .number("in_w", s.in_w)
      .number("out_h", s.out_h)
      .number("out_w", s.out_w)
      .number("in_channels", s.in_channels)
      .number("out_channels", s.out_channels)
      .number("groups", s.groups)
      .number("kernel_h", s.kernel_h)
      .number("kernel_w", s.kernel_w)
      .number("x_stride", o.input.stride)
      .number("y_stride", output_stride)
      .number("residual_stride", o.residual.stride)
      .number("stride_h", p.stride[0])
      .number("stride_w", p.stride[1])
      .number("pad_h", p.padding[0])
      .number("pad_w", p.padding[1])
      .number("dilation_h", p.dilation[0])
      .number("dilation_w", p.dilation[1])
      .number("POINTWISE", s.taps() == 1 && p.padding[0] == 0 && p.padding[1] == 0)
      .word("ACTIVATION", a.activation)
      .word("PRECISION", precision_of(a.input));
  return arguments;
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t programs(const Tile& tile, const Sizes& s) {
  return divide_up(s.pixels(), tile.m) * divide_up(s.out_channels, tile.n) * s.groups;
}

// Whether a step of the sum spans several taps.
bool spans_taps(const Variant& variant) {
  for (size_t i = 0; i < variant.parameter_count; ++i)
    if (variant.parameters[i].name == "ACROSS_TAPS") return variant.parameters[i].number != 0;
  return false;
}

// Clocks by published rates, as cnnfast/triton/tiles.py counts them; only their order matters.
double modelled_clocks(const Variant& variant, const Sizes& s, int item_size, const DeviceFacts& device) {
  constexpr double kBytesPerClock = 47;
  constexpr double kMultiplyAddsPerClock = 1024;
  const Tile& t = variant.tile;
  const int64_t steps = spans_taps(variant) ? divide_up(s.taps() * s.in_channels, t.k)
                                            : s.taps() * divide_up(s.in_channels, t.k);
  const double waves = static_cast<double>(divide_up(programs(t, s), device.processors));
  const double multiply = 1.0 * t.m * t.n * t.k * item_size / 2 / kMultiplyAddsPerClock;
  const double read = (1.0 * t.m + t.n) * t.k * item_size / kBytesPerClock;
  const double write = 1.0 * t.m * t.n * item_size / kBytesPerClock;
  return waves * (steps * std::max(multiply, read) + write);
}

struct Search {
  std::vector<TritonConv2d> found;
  std::string reason = "this build has no Triton kernel for convolutions";
  size_t nearest = 0;  // parameters that fitted before the one of `reason`
};

// An output address stands for any that an allocator gives.
void search(Search& result, const Conv2dArgs& a, const Sizes& s, const DeviceFacts& device, bool filled) {
  const Operands operands(a, filled);
  alignas(16) static const char output[16] = {};
  const Arguments arguments = arguments_of(a, s, operands, output, s.out_channels * s.groups);
  for (size_t i = 0; i < table().count; ++i) {
    const Variant& variant = table().variants[i];
    if (variant.kernel != "conv2d") continue;
    if (const auto problem = misfit(variant, arguments)) {
      if (problem->position < result.nearest) continue;
      result.nearest = problem->position;
      result.reason =
          "no Triton kernel of this build fits; of " + std::string(variant.name) + ", " + problem->reason;
    } else if (programs(variant.tile, s) > std::numeric_limits<int32_t>::max()) {
      result.reason = "the output has more tiles than a grid can have";
    } else if (const Image* image = image_for(variant, device, &result.reason)) {
      result.found.push_back({&variant, image, filled});
    }
  }
}

}  // namespace

std::vector<TritonConv2d> triton_conv2d_choices(const Conv2dArgs& a, at::IntArrayRef output_sizes,
                                                std::string* reason) {
  const Sizes sizes(a, output_sizes);
  if (table().count == 0) {
    *reason = "this build has no Triton kernels (CNNFAST_TRITON_AOT=1 builds them in)";
    return {};
  }
  if (!find_driver().driver) {
    *reason = find_driver().reason;
    return {};
  }
  *reason = too_large(sizes, a.params);
  if (!reason->empty()) return {};
  const DeviceFacts& device = device_facts(std::max<int>(a.input.device().index(), 0));
  Search result;
  search(result, a, sizes, device, false);
  if (result.found.empty() && !(present(a.bias) && present(a.scale))) search(result, a, sizes, device, true);
  const int item_size = static_cast<int>(a.input.element_size());
  std::stable_sort(result.found.begin(), result.found.end(), [&](const auto& l, const auto& r) {
    return modelled_clocks(*l.variant, sizes, item_size, device) <
           modelled_clocks(*r.variant, sizes, item_size, device);
  });
  if (result.found.size() > kMostChoices) result.found.resize(kMostChoices);
  *reason = result.found.empty() ? result.reason : "";
  return result.found;
}

bool fits_output(const TritonConv2d& choice, const Conv2dArgs& a, const at::Tensor& output) {
  const auto stride = pixel_stride(output);
  if (!stride) return false;
  const Operands operands(a, choice.filled);
  return !misfit(*choice.variant,
                 arguments_of(a, Sizes(a, output.sizes()), operands, output.const_data_ptr(), *stride));
}

void run_triton_conv2d(const TritonConv2d& choice, const Conv2dArgs& a, const at::Tensor& output) {
  const c10::DeviceGuard guard(a.input.device());
  const Sizes sizes(a, output.sizes());
  const Operands operands(a, choice.filled);
  const auto stride = pixel_stride(output);
  TORCH_INTERNAL_ASSERT(stride);
  const Arguments arguments = arguments_of(a, sizes, operands, output.mutable_data_ptr(), *stride);
  Packed packed(*choice.variant, arguments);
  std::vector<at::Tensor> scratch;
  const auto allocate = [&](size_t bytes, size_t alignment) {
    scratch.push_back(
        at::empty({static_cast<int64_t>(bytes + alignment)}, a.input.options().dtype(at::kByte)));
    const auto address = reinterpret_cast<uintptr_t>(scratch.back().mutable_data_ptr());
    return reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
  };
  const Grid grid{static_cast<unsigned>(programs(choice.variant->tile, sizes)), 1, 1};
  launch(*choice.variant, *choice.image, packed, grid, std::max<int>(a.input.device().index(), 0),
         current_stream(a.input.device()), allocate);
}

}  // namespace cnnfast::gpu
