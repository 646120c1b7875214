// conv2d on the CPU: float32 through the kernel table, bfloat16 widened for it, other types through ATen.
#include "ops/conv2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;

// Below this much work the transform of the weights is no small part of the whole.
constexpr double kWinogradFlops = 2e7;

AlignedFloats channel_values(const ConvGeometry& g, const OptionalTensor& t) {
  return present(t) ? pack_channels(g, widened(*t).contiguous().const_data_ptr<float>()) : AlignedFloats(0);
}

ConvGeometry geometry_of(const Conv2dArgs& a, at::IntArrayRef sizes) {
  return {a.input.size(0),
          a.input.size(1),
          sizes[1],
          a.params.groups,
          a.weight.size(2),
          a.weight.size(3),
          a.params.stride[0],
          a.params.stride[1],
          a.params.dilation[0],
          a.params.dilation[1],
          sizes[2],
          sizes[3],
          parse_activation("conv2d", a.activation)};
}

}  // namespace

at::Tensor conv2d_float(const Conv2dArgs& a, const std::vector<c10::SymInt>& sizes) {
  return conv2d_float(a, sizes, with_border);
}

at::Tensor conv2d_float(const Conv2dArgs& a, const std::vector<c10::SymInt>& sizes, const BringIn& bring_in) {
  const at::Tensor output =
      output_empty(concrete(sizes), a.input.options().dtype(at::kFloat), at::MemoryFormat::ChannelsLast);
  conv2d_into(a, output, bring_in);
  return output;
}

void conv2d_into(const Conv2dArgs& a, const at::Tensor& output, const BringIn& bring_in) {
  if (output.numel() == 0) return;
  ConvGeometry g = geometry_of(a, output.sizes());
  if (g.flops() >= kWinogradFlops) g.algorithm = choose_algorithm(g, largest_trained_tile(g));
  const Overreach beyond = overreach(g);
  at::Tensor padded, dense_residual;
  const int64_t ph = a.params.padding[0], pw = a.params.padding[1];
  const View input = bring_in(a.input, {ph, pw, ph + beyond.bottom, pw + beyond.right}, padded);
  View residual{};
  if (present(a.residual)) {
    dense_residual = widened(*a.residual);
    if (!channels_adjacent(dense_residual))
      dense_residual = dense_residual.contiguous(at::MemoryFormat::ChannelsLast);
    residual = view_of(dense_residual);
  }
  const bool raw = is_trained(a.weight) && takes_raw_weights(g);
  const at::Tensor raw_weight = raw ? widened(a.weight) : at::Tensor();
  const auto packed = raw ? nullptr : packed_weight(a.weight, g);
  const AlignedFloats scale = channel_values(g, a.scale), shift = channel_values(g, a.bias);
  const PackedConv weights =
      raw ? PackedConv(raw_weight.const_data_ptr<float>(), weight_strides(raw_weight), scale, shift)
          : PackedConv(*packed, scale, shift);
  const View out = view_of(output);
  const ConvJob job(g, {input.data - ph * input.row - pw * input.pixel, input.image, input.row, input.pixel},
                    out, residual);
  const int threads = g.flops() < kSerialFlops ? 1 : team_size();
  parallel_team(threads, [&](int thread, int team, Barrier&) { job.run(weights, thread, team); });
}

namespace {

at::Tensor conv2d_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& residual, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::string_view activation) {
  const bool wide = takes_widened(input);
  if (!wide && !is_plain_float(input))
    return conv2d_composite(input, weight, bias, scale, residual, stride, padding, dilation, groups,
                            activation);
  const Conv2dArgs args{input,     weight, bias, scale, residual, {stride, padding, dilation, groups},
                        activation};
  const auto sizes = check_conv2d("conv2d", args);
  const at::Tensor paired = wide ? paired_conv2d(args, sizes) : at::Tensor();
  return paired.defined() ? paired : rounded_to(input.scalar_type(), conv2d_float(args, sizes));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d", TORCH_FN(conv2d_cpu)); }

}  // namespace cnnfast::cpu
