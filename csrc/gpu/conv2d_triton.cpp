#include "gpu/conv2d_triton.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "gpu/conv_shape.h"
#include "gpu/nhwc.h"

namespace cnnfast::gpu {
namespace {

// The tensors of a call where the kernel can read them. They stay until the kernel is in the stream: the
// allocator gives memory back in the stream's order.
struct Operands {
  NhwcTensor input, residual{at::Tensor(), 0};
  at::Tensor weight, bias, scale, pre_scale, pre_shift;

  explicit Operands(const TritonConv2d& call)
      : input(as_nhwc(call.conv.input)), weight(rows_of_weights(call.conv.weight)) {
    const Conv2dArgs& a = call.conv;
    if (present(a.residual)) residual = as_nhwc(*a.residual);
    // Vectors with an element per channel are float32 in every variant.
    if (present(a.bias)) bias = a.bias->to(at::kFloat).contiguous();
    if (present(a.scale)) scale = a.scale->to(at::kFloat).contiguous();
    if (call.prologue) pre_scale = call.prologue->scale, pre_shift = call.prologue->shift;
  }

  void fill_for(const Variant& variant, int64_t channels) {
    const auto options = input.tensor.options().dtype(at::kFloat);
    if (!bias.defined() && takes(variant, "bias_ptr")) bias = at::zeros({channels}, options);
    if (!scale.defined() && takes(variant, "scale_ptr")) scale = at::ones({channels}, options);
  }
};

struct Places {
  const void *bias, *scale, *pre_scale, *pre_shift, *parts, *output;
  int64_t output_stride;
};

Arguments arguments_of(const TritonConv2d& call, const ConvShape& s, const Operands& o, const Places& at) {
  const Conv2dArgs& a = call.conv;
  const Type type = type_of(a.input);
  Arguments arguments;
  arguments.tensor("x_ptr", type, address_of(o.input.tensor))
      .tensor("w_ptr", type, address_of(o.weight))
      .tensor("y_ptr", type, at.output)
      .tensor("residual_ptr", type, address_of(o.residual.tensor))
      .tensor("bias_ptr", Type::kFloat32, at.bias)
      .tensor("scale_ptr", Type::kFloat32, at.scale)
      .tensor("pre_scale_ptr", Type::kFloat32, at.pre_scale)
      .tensor("pre_shift_ptr", Type::kFloat32, at.pre_shift)
      .tensor("parts_ptr", Type::kFloat32, at.parts)
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
      .number("y_stride", at.output_stride)
      .number("residual_stride", o.residual.stride)
      .number("stride_h", s.stride[0])
      .number("stride_w", s.stride[1])
      .number("pad_h", s.padding[0])
      .number("pad_w", s.padding[1])
      .number("dilation_h", s.dilation[0])
      .number("dilation_w", s.dilation[1])
      .number("POINTWISE", s.pointwise())
      .number("PRE_RELU", call.prologue && call.prologue->relu)
      .word("ACTIVATION", a.activation)
      .word("PRECISION", precision_of(a.input));
  return arguments;
}

// For a kernel that is only looked at: absent vectors count as present where they would be filled in.
Places places_for(const Variant& variant, const TritonConv2d& call, const Operands& o, const void* output,
                  int64_t output_stride) {
  const auto vector = [&](const at::Tensor& given, const char* name) {
    return given.defined() || takes(variant, name) ? kSomeAddress : nullptr;
  };
  const void* prologue = call.prologue ? kSomeAddress : nullptr;
  return {vector(o.bias, "bias_ptr"),
          vector(o.scale, "scale_ptr"),
          prologue,
          prologue,
          call.statistics ? kSomeAddress : nullptr,
          output,
          output_stride};
}

int64_t programs_of(const Variant& variant, const ConvShape& s) {
  return divide_up(s.pixels(), variant.tile.m) * divide_up(s.out_channels, variant.tile.n) * s.groups;
}

}  // namespace

std::vector<Kernel> find_triton_conv2d(const TritonConv2d& call, at::IntArrayRef output_sizes,
                                       std::string* reason) {
  if (!has_kernels(reason)) return {};
  const Conv2dArgs& a = call.conv;
  const ConvShape s(a.input, a.weight, output_sizes, a.params);
  *reason = s.too_large();
  if (!reason->empty()) return {};
  const Operands operands(call);
  const int item_size = static_cast<int>(a.input.element_size()), device = ordinal_of(a.input);
  const int processors = device_facts(device).processors;
  const Product product{s.pixels(), s.out_channels, s.in_channels, s.taps(), s.groups};
  return find_kernels({"conv2d",
                       [&](const Variant& v) {
                         return arguments_of(
                             call, s, operands,
                             places_for(v, call, operands, kSomeAddress, s.all_out_channels()));
                       },
                       [&](const Variant& v) { return programs_of(v, s); },
                       [&](const Variant& v) {
                         return modelled_clocks(product, v.tile, constant_of(v, "ACROSS_TAPS"), item_size, 1,
                                                item_size, processors);
                       }},
                      device, kMostTimed, reason);
}

std::optional<Parts> run_triton_conv2d(const Kernel& kernel, const TritonConv2d& call,
                                       const at::Tensor& output) {
  const Conv2dArgs& a = call.conv;
  const ConvShape s(a.input, a.weight, output.sizes(), a.params);
  Operands o(call);
  o.fill_for(*kernel.variant, s.all_out_channels());
  const auto stride = pixel_stride(output);
  if (!stride) return std::nullopt;
  const int64_t m = kernel.variant->tile.m;
  Parts parts{{}, m, s.pixels()};
  if (call.statistics)
    parts.sums =
        at::empty({divide_up(s.pixels(), m), 2, s.all_out_channels()}, a.input.options().dtype(at::kFloat));
  const Places places{address_of(o.bias),
                      address_of(o.scale),
                      address_of(o.pre_scale),
                      address_of(o.pre_shift),
                      address_of(parts.sums),
                      output.mutable_data_ptr(),
                      *stride};
  const Arguments arguments = arguments_of(call, s, o, places);
  if (misfit(*kernel.variant, arguments)) return std::nullopt;
  run_kernel(kernel, arguments, programs_of(*kernel.variant, s), a.input);
  return parts;
}

}  // namespace cnnfast::gpu
