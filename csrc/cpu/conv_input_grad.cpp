#include "cpu/conv_input_grad.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/conv2d.h"
#include "cpu/memory_pool.h"
#include "cpu/paired_conv.h"
#include "cpu/paired_input_grad.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;
// Groups of fewer channels would leave most lanes of a vector empty.
constexpr int64_t kLeastGroup = 8;

bool is_depthwise(const at::Tensor& weight, int64_t groups) {
  return groups > 1 && weight.size(0) == groups && weight.size(1) == 1;
}

}  // namespace

TurnedWeight::TurnedWeight(const at::Tensor& w, const InputGradientPart& part, at::IntArrayRef stride,
                           bool swapped)
    : first(w.const_data_ptr<float>() + part.rows.last * w.stride(2) + part.columns.last * w.stride(3)),
      strides{swapped ? w.stride(1) : w.stride(0), swapped ? w.stride(0) : w.stride(1),
              -stride[0] * w.stride(2), -stride[1] * w.stride(3)} {}

bool InputGradient::serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p) {
  if (!(is_plain_float(input) || takes_widened(input)) || !is_plain_float(weight)) return false;
  if (!has_phases(p)) return false;
  return p.groups == 1 || is_depthwise(weight, p.groups) ||
         std::min(weight.size(1), weight.size(0) / p.groups) >= kLeastGroup;
}

InputGradient::InputGradient(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                             at::IntArrayRef output_sizes)
    : input_(input),
      weight_(weight),
      params_(params),
      parts_(input.sizes(), weight.sizes(), params, output_sizes, InputGradientParts::of(input)) {
  for (const InputGradientPart& part : parts_.parts) {
    const bool raw = takes_raw_weights(part.geometry);
    packing_.push_back({packed_floats_, raw});
    if (!raw) packed_floats_ += round_up(packed_floats(part.geometry), 16);
  }
}

// The weights of every part, packed into memory of packed_floats_ or as they lie in `held`.
std::vector<PackedConv> InputGradient::weights(float* to, at::Tensor& held) const {
  static const AlignedFloats none(0);
  const int64_t groups = params_.groups;
  const bool depthwise = is_depthwise(weight_, groups);
  held = groups == 1 || depthwise ? weight_ : swapped_groups(weight_, groups);
  const bool swapped = groups == 1;  // read with the channels in each other's place
  std::vector<PackedConv> all;
  for (size_t i = 0; i < packing_.size(); ++i) {
    const InputGradientPart& part = parts_.parts[i];
    const TurnedWeight turned(held, part, params_.stride, swapped);
    if (packing_[i].raw) {
      all.emplace_back(turned.first, turned.strides, none, none);
    } else {
      pack_weight_into(part.geometry, turned.first, turned.strides, to + packing_[i].at, true);
      all.emplace_back(to + packing_[i].at, none, none);
    }
  }
  return all;
}

at::Tensor InputGradient::run(const View& grad) const {
  const auto options = input_.options().dtype(at::kFloat);
  const auto format = input_.suggest_memory_format();
  const bool direct_write = channels_adjacent(input_) && input_.is_non_overlapping_and_dense();
  const at::Tensor result = !direct_write
                                ? gradient_empty(input_.sizes(), options, at::MemoryFormat::ChannelsLast)
                            : input_.is_contiguous(format) ? gradient_empty(input_.sizes(), options, format)
                                                           : at::empty_like(input_, options);
  run_into(grad, result);
  return direct_write ? result : at::empty_like(input_, options).copy_(result);
}

void InputGradient::run_into(const View& grad, const at::Tensor& result) const {
  float* packed = thread_scratch(ScratchSlot::kPacked, packed_floats_);
  at::Tensor held;
  const std::vector<PackedConv> packed_weights = weights(packed, held);
  const View to = view_of(result);
  std::vector<ConvJob> jobs;
  double flops = 0;
  for (const InputGradientPart& part : parts_.parts) {
    View from = grad, target = to;
    from.data += part.rows.lowest * grad.row + part.columns.lowest * grad.pixel;
    target.data += part.rows.first * to.row + part.columns.first * to.pixel;
    target.row *= params_.stride[0];
    target.pixel *= params_.stride[1];
    jobs.emplace_back(part.geometry, from, target, View{});
    flops += part.geometry.flops();
  }
  parallel_team(flops < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    if (!parts_.covers_all) {
      const auto [begin, end] = share(result.numel(), 1024, thread, team);
      std::memset(result.data_ptr<float>() + begin, 0, sizeof(float) * static_cast<size_t>(end - begin));
      barrier.wait();
    }
    for (size_t i = 0; i < jobs.size(); ++i) jobs[i].run(packed_weights[i], thread, team);
  });
}

namespace {

// By products of floats; bfloat16 gradients are widened on their way in. The result is float32.
at::Tensor float_input_grad(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                            const Conv2dParams& p) {
  const InputGradient gradient(input, weight, p, grad_output.sizes());
  at::Tensor storage;
  return gradient.run(with_border_kept(grad_output, gradient.border(), storage));
}

at::Tensor widened_input_grad(const at::Tensor& grad_output, const at::Tensor& input,
                              const at::Tensor& weight, const Conv2dParams& p) {
  const at::Tensor wide = widened_kept(weight);
  if (InputGradient::serves(input, wide, p)) return float_input_grad(grad_output, input, wide, p);
  return conv2d_input_grad_composite(widened_kept(grad_output), widened_kept(input), wide, p.stride,
                                     p.padding, p.dilation, p.groups);
}

at::Tensor conv2d_input_grad_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups) {
  const Conv2dParams p{stride, padding, dilation, groups};
  const bool narrow = takes_widened(grad_output, {input});
  if (narrow) check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight, p);
  if (narrow && PairedInputGradient::serves(weight, p) &&
      multiplies_pairs(conv_geometry(input, weight, p, grad_output.sizes()))) {
    PairedInputGradient gradient(input, weight, p, grad_output.sizes());
    return gradient.run(bring_in16(grad_output, gradient.border()));
  }
  if (narrow) return rounded_to(input.scalar_type(), widened_input_grad(grad_output, input, weight, p));
  if (!is_plain_float(grad_output) || !is_plain_float(input) || !InputGradient::serves(input, weight, p))
    return conv2d_input_grad_composite(grad_output, input, weight, stride, padding, dilation, groups);
  check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight, p);
  if (grad_output.numel() == 0) return at::zeros_like(input);
  return float_input_grad(grad_output, input, weight, p);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d_input_grad", TORCH_FN(conv2d_input_grad_cpu)); }

}  // namespace cnnfast::cpu
