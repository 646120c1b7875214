#include "gpu/conv2d_gradients_triton.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <numeric>

#include "gpu/conv2d_triton.h"
#include "gpu/conv_shape.h"
#include "gpu/nhwc.h"

namespace cnnfast::gpu {
namespace {

ConvShape shape_of(const ConvGradientCall& c) { return {c.input, c.weight, c.grad_output.sizes(), c.params}; }

void add_geometry(Arguments& arguments, const ConvShape& s) {
  arguments.number("in_h", s.in_h)
      .number("in_w", s.in_w)
      .number("out_h", s.out_h)
      .number("out_w", s.out_w)
      .number("in_channels", s.in_channels)
      .number("out_channels", s.out_channels)
      .number("groups", s.groups)
      .number("kernel_h", s.kernel_h)
      .number("kernel_w", s.kernel_w)
      .number("stride_h", s.stride[0])
      .number("stride_w", s.stride[1])
      .number("pad_h", s.padding[0])
      .number("pad_w", s.padding[1])
      .number("dilation_h", s.dilation[0])
      .number("dilation_w", s.dilation[1])
      .number("POINTWISE", s.pointwise());
}

// ---- gradient of the input

struct InputGradOperands {
  NhwcTensor grad;
  at::Tensor weight;

  explicit InputGradOperands(const ConvGradientCall& c)
      : grad(as_nhwc(c.grad_output)), weight(rows_of_weights(c.weight)) {}
};

Arguments input_grad_arguments(const ConvShape& s, const InputGradOperands& o, const void* result) {
  const Type type = type_of(o.weight);
  Arguments arguments;
  arguments.tensor("dy_ptr", type, address_of(o.grad.tensor))
      .tensor("w_ptr", type, address_of(o.weight))
      .tensor("dx_ptr", type, result)
      .tensor("residual_ptr", type, nullptr)
      .tensor("x_ptr", type, nullptr)
      .tensor("pre_scale_ptr", Type::kFloat32, nullptr)
      .tensor("pre_shift_ptr", Type::kFloat32, nullptr)
      .number("batch", s.batch)
      .number("dy_stride", o.grad.stride)
      .number("dx_stride", s.in_channels * s.groups)
      .number("residual_stride", 0)
      .number("x_stride", 0)
      .number("tap_step_h", s.stride[0] / std::gcd(s.stride[0], s.dilation[0]))
      .number("tap_step_w", s.stride[1] / std::gcd(s.stride[1], s.dilation[1]))
      .number("STRIDED", s.stride[0] != 1 || s.stride[1] != 1)
      .word("PRECISION", precision_of(o.weight));
  add_geometry(arguments, s);
  return arguments;
}

// The first phase has the most pixels; programs of the others that have none only pass.
int64_t input_grad_programs(const Variant& v, const ConvShape& s) {
  const int64_t pixels = s.batch * divide_up(s.in_h, s.stride[0]) * divide_up(s.in_w, s.stride[1]);
  return divide_up(pixels, v.tile.m) * s.stride[0] * s.stride[1] * s.groups *
         divide_up(s.in_channels, v.tile.n);
}

// ---- gradient of the weight

// What a sum over pixels is cut into. `across`: a tile of columns spans several taps.
struct Cut {
  bool across;
  int64_t column_tiles, part_pixels, parts;
};

// Writing and reading the parts takes at most an eighth of the operands' bytes; fewer steps than four would
// not fill a pipeline.
constexpr int64_t kPartsShare = 8;
constexpr int64_t kLeastSteps = 4;

Cut cut_of(const Variant& v, const ConvShape& s, int item_size, int processors) {
  const Tile& t = v.tile;
  Cut cut{};
  cut.across = constant_of(v, "ACROSS_TAPS") != 0;
  cut.column_tiles =
      cut.across ? divide_up(s.taps() * s.in_channels, t.n) : s.taps() * divide_up(s.in_channels, t.n);
  const int64_t columns = s.taps() * s.in_channels;
  const int64_t tiles = divide_up(s.out_channels, t.m) * divide_up(columns, t.n) * s.groups;
  const int64_t operands = s.pixels() * (s.out_channels + columns) * item_size;
  const int64_t part_bytes = 8 * s.out_channels * columns;
  const int64_t wanted =
      std::max<int64_t>(1, std::min({processors / tiles, operands / (kPartsShare * part_bytes),
                                     divide_up(s.pixels(), t.k) / kLeastSteps}));
  cut.part_pixels = divide_up(divide_up(s.pixels(), wanted), t.k) * t.k;
  cut.parts = divide_up(s.pixels(), cut.part_pixels);
  return cut;
}

struct WeightGradOperands {
  NhwcTensor grad, input;

  explicit WeightGradOperands(const ConvGradientCall& c)
      : grad(as_nhwc(c.grad_output)), input(as_nhwc(c.input)) {}
};

Arguments weight_grad_arguments(const ConvShape& s, const WeightGradOperands& o, const Cut& cut,
                                const void* parts) {
  const Type type = type_of(o.input.tensor);
  Arguments arguments;
  arguments.tensor("dy_ptr", type, address_of(o.grad.tensor))
      .tensor("x_ptr", type, address_of(o.input.tensor))
      .tensor("parts_ptr", Type::kFloat32, parts)
      .tensor("pre_scale_ptr", Type::kFloat32, nullptr)
      .tensor("pre_shift_ptr", Type::kFloat32, nullptr)
      .number("pixels", s.pixels())
      .number("dy_stride", o.grad.stride)
      .number("x_stride", o.input.stride)
      .number("part_pixels", cut.part_pixels)
      .word("PRECISION", precision_of(o.input.tensor));
  add_geometry(arguments, s);
  return arguments;
}

int64_t weight_grad_programs(const Variant& v, const ConvShape& s, const Cut& cut) {
  return divide_up(s.out_channels, v.tile.m) * cut.column_tiles * s.groups * cut.parts;
}

Arguments sum_arguments(const void* parts, const void* sum, Type type, int64_t count, int64_t numel) {
  Arguments arguments;
  arguments.tensor("parts_ptr", Type::kFloat32, parts)
      .tensor("sum_ptr", type, sum)
      .number("parts", count)
      .number("numel", numel);
  return arguments;
}

int64_t sum_programs(const Variant& v, int64_t numel) { return divide_up(numel, constant_of(v, "BLOCK")); }

}  // namespace

std::vector<Kernel> find_triton_input_grad(const ConvGradientCall& c, std::string* reason) {
  if (!has_kernels(reason)) return {};
  const ConvShape s = shape_of(c);
  *reason = s.too_large();
  if (!reason->empty()) return {};
  const InputGradOperands operands(c);
  const int item_size = static_cast<int>(c.input.element_size()), device = ordinal_of(c.input);
  const int processors = device_facts(device).processors;
  const int64_t phases = s.stride[0] * s.stride[1];
  const Product product{divide_up(s.batch * s.in_h * s.in_w, phases), s.in_channels, s.out_channels,
                        divide_up(s.taps(), phases), s.groups * phases};
  return find_kernels(
      {"conv2d_input_grad", [&](const Variant&) { return input_grad_arguments(s, operands, kSomeAddress); },
       [&](const Variant& v) { return input_grad_programs(v, s); },
       [&](const Variant& v) {
         return modelled_clocks(product, v.tile, constant_of(v, "ACROSS_TAPS"), item_size, 1, item_size,
                                processors);
       }},
      device, kMostTimed, reason);
}

at::Tensor run_triton_input_grad(const Kernel& kernel, const ConvGradientCall& c) {
  const ConvShape s = shape_of(c);
  const InputGradOperands operands(c);
  const at::Tensor result = at::empty(c.input.sizes(), c.input.options(), at::MemoryFormat::ChannelsLast);
  run_kernel(kernel, input_grad_arguments(s, operands, result.mutable_data_ptr()),
             input_grad_programs(*kernel.variant, s), c.input);
  return result;
}

std::vector<WeightGradKernels> find_triton_weight_grad(const ConvGradientCall& c, std::string* reason) {
  if (!has_kernels(reason)) return {};
  const ConvShape s = shape_of(c);
  *reason = s.too_large();
  if (!reason->empty()) return {};
  const WeightGradOperands operands(c);
  const int item_size = static_cast<int>(c.input.element_size()), device = ordinal_of(c.input);
  const int processors = device_facts(device).processors;
  const auto cut = [&](const Variant& v) { return cut_of(v, s, item_size, processors); };
  const auto products = find_kernels(
      {"conv2d_weight_grad",
       [&](const Variant& v) { return weight_grad_arguments(s, operands, cut(v), kSomeAddress); },
       [&](const Variant& v) { return weight_grad_programs(v, s, cut(v)); },
       [&](const Variant& v) {
         const Product product{s.out_channels, s.taps() * s.in_channels, s.pixels(), 1, s.groups};
         return modelled_clocks(product, v.tile, false, item_size, cut(v).parts, 8, processors);
       }},
      device, kMostTimed, reason);
  if (products.empty()) return {};
  const int64_t numel = c.weight.numel();
  const auto sums = find_kernels(
      {"sum_parts",
       [&](const Variant&) { return sum_arguments(kSomeAddress, kSomeAddress, type_of(c.weight), 1, numel); },
       [&](const Variant& v) { return sum_programs(v, numel); },
       // The one with wider accesses.
       [](const Variant& v) { return -static_cast<double>(constant_of(v, "ALIGN")); }},
      device, 1, reason);
  std::vector<WeightGradKernels> found;
  if (!sums.empty())
    for (const Kernel& product : products) found.push_back({product, sums[0]});
  return found;
}

at::Tensor run_triton_weight_grad(const WeightGradKernels& kernels, const ConvGradientCall& c) {
  const ConvShape s = shape_of(c);
  const WeightGradOperands operands(c);
  const Cut cut = cut_of(*kernels.product.variant, s, static_cast<int>(c.input.element_size()),
                         device_facts(ordinal_of(c.input)).processors);
  const int64_t numel = c.weight.numel();
  const at::Tensor parts = at::empty({cut.parts, numel}, c.input.options().dtype(at::kFloat));
  run_kernel(kernels.product, weight_grad_arguments(s, operands, cut, parts.mutable_data_ptr()),
             weight_grad_programs(*kernels.product.variant, s, cut), c.input);
  const at::Tensor result = at::empty(c.weight.sizes(), c.weight.options(), at::MemoryFormat::ChannelsLast);
  run_kernel(kernels.sum,
             sum_arguments(address_of(parts), result.mutable_data_ptr(), type_of(c.weight), cut.parts, numel),
             sum_programs(*kernels.sum.variant, numel), c.input);
  return result;
}

}  // namespace cnnfast::gpu
