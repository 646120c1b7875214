#include "cpu/conv_input_grad.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/memory_pool.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work the transform of the weights is no small part of the whole.
constexpr double kWinogradFlops = 2e7;
// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;
// Groups of fewer channels would leave most lanes of a vector empty.
constexpr int64_t kLeastGroup = 8;

int64_t divide_up(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

bool is_depthwise(const at::Tensor& weight, int64_t groups) {
  return groups > 1 && weight.size(0) == groups && weight.size(1) == 1;
}

// In the order of a convolution from outputs to inputs: I x (O / groups) x height x width.
at::Tensor swapped_groups(const at::Tensor& weight, int64_t groups) {
  const int64_t out = weight.size(0) / groups, in = weight.size(1);
  return weight.reshape({groups, out, in, weight.size(2), weight.size(3)})
      .transpose(1, 2)
      .reshape({groups * in, out, weight.size(2), weight.size(3)});
}

}  // namespace

bool InputGradient::serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p) {
  if (!is_plain_float(input) || !is_plain_float(weight)) return false;
  for (int i = 0; i < 2; ++i)
    if (p.stride[i] > 1 && p.dilation[i] > 1) return false;
  return p.groups == 1 || is_depthwise(weight, p.groups) ||
         std::min(weight.size(1), weight.size(0) / p.groups) >= kLeastGroup;
}

// Input place i and kernel place k belong to output place (i + padding - k * dilation) / stride. With stride
// 1 there is one phase; else, with dilation 1, a phase per remainder of i + padding.
std::vector<InputGradient::Phase> InputGradient::phases(int64_t size, int64_t kernel, int64_t stride,
                                                        int64_t padding, int64_t dilation) {
  std::vector<Phase> found;
  for (int64_t remainder = 0; remainder < stride; ++remainder) {
    const int64_t start = divide_up(padding - remainder, stride);  // output place of the phase's first input
    Phase phase;
    phase.first = start * stride + remainder - padding;
    phase.places = phase.first < size ? (size - phase.first + stride - 1) / stride : 0;
    phase.count = remainder < kernel ? (kernel - remainder + stride - 1) / stride : 0;
    phase.last = remainder + (phase.count - 1) * stride;
    phase.lowest = start - (phase.count - 1) * dilation;
    found.push_back(phase);
  }
  return found;
}

InputGradient::InputGradient(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                             at::IntArrayRef output_sizes)
    : input_(input), weight_(weight), params_(params), output_sizes_(output_sizes) {
  const auto side = [&](int i) {
    return phases(input.size(2 + i), weight.size(2 + i), params.stride[i], params.padding[i],
                  params.dilation[i]);
  };
  const auto all_columns = side(1);
  for (const Phase& rows : side(0))
    for (const Phase& columns : all_columns) add_part(rows, columns);
}

void InputGradient::add_part(const Phase& rows, const Phase& columns) {
  if (rows.places == 0 || columns.places == 0) return;
  if (rows.count == 0 || columns.count == 0) {
    covers_all_ = false;
    return;
  }
  ConvGeometry g{output_sizes_[0],
                 output_sizes_[1],
                 input_.size(1),
                 params_.groups,
                 rows.count,
                 columns.count,
                 1,
                 1,
                 params_.dilation[0],
                 params_.dilation[1],
                 rows.places,
                 columns.places,
                 {}};
  if (g.flops() >= kWinogradFlops) g.algorithm = choose_algorithm(g, largest_trained_tile(g));
  const Overreach beyond = overreach(g);
  const auto last_read = [](const Phase& phase, int64_t dilation) {
    return phase.lowest + phase.places - 1 + (phase.count - 1) * dilation;
  };
  border_.top = std::max(border_.top, -rows.lowest);
  border_.left = std::max(border_.left, -columns.lowest);
  border_.bottom =
      std::max(border_.bottom, last_read(rows, params_.dilation[0]) + beyond.bottom - (output_sizes_[2] - 1));
  border_.right = std::max(border_.right,
                           last_read(columns, params_.dilation[1]) + beyond.right - (output_sizes_[3] - 1));
  const bool raw = takes_raw_weights(g);
  parts_.push_back({rows, columns, g, packed_floats_, raw});
  if (!raw) packed_floats_ += divide_up(packed_floats(g), 16) * 16;
}

// The weights of every part, packed into memory of packed_floats_ or as they lie in `held`.
std::vector<PackedConv> InputGradient::weights(float* to, at::Tensor& held) const {
  static const AlignedFloats none(0);
  const int64_t groups = params_.groups;
  const bool depthwise = is_depthwise(weight_, groups);
  held = groups == 1 || depthwise ? weight_ : swapped_groups(weight_, groups);
  const at::Tensor& w = held;
  const bool swapped = groups == 1;  // read with the channels in each other's place
  std::vector<PackedConv> all;
  for (const Part& part : parts_) {
    const WeightStrides strides{swapped ? w.stride(1) : w.stride(0), swapped ? w.stride(0) : w.stride(1),
                                -params_.stride[0] * w.stride(2), -params_.stride[1] * w.stride(3)};
    const float* last =
        w.const_data_ptr<float>() + part.rows.last * w.stride(2) + part.columns.last * w.stride(3);
    if (part.raw) {
      all.emplace_back(last, strides, none, none);
    } else {
      pack_weight_into(part.geometry, last, strides, to + part.packed_at, true);
      all.emplace_back(to + part.packed_at, none, none);
    }
  }
  return all;
}

at::Tensor InputGradient::run(const View& grad) const {
  const bool direct_write = channels_adjacent(input_) && input_.is_non_overlapping_and_dense();
  const at::Tensor result =
      !direct_write ? gradient_empty(input_.sizes(), input_.options(), at::MemoryFormat::ChannelsLast)
                    : gradient_empty_like(input_);
  float* packed = thread_scratch(ScratchSlot::kPacked, packed_floats_);
  at::Tensor held;
  const std::vector<PackedConv> packed_weights = weights(packed, held);
  const View to = view_of(result);
  std::vector<ConvJob> jobs;
  double flops = 0;
  for (const Part& part : parts_) {
    View from = grad, target = to;
    from.data += part.rows.lowest * grad.row + part.columns.lowest * grad.pixel;
    target.data += part.rows.first * to.row + part.columns.first * to.pixel;
    target.row *= params_.stride[0];
    target.pixel *= params_.stride[1];
    jobs.emplace_back(part.geometry, from, target, View{});
    flops += part.geometry.flops();
  }
  parallel_team(flops < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    if (!covers_all_) {
      const auto [begin, end] = share(result.numel(), 1024, thread, team);
      std::memset(result.data_ptr<float>() + begin, 0, sizeof(float) * static_cast<size_t>(end - begin));
      barrier.wait();
    }
    for (size_t i = 0; i < jobs.size(); ++i) jobs[i].run(packed_weights[i], thread, team);
  });
  return direct_write ? result : at::empty_like(input_).copy_(result);
}

namespace {

at::Tensor conv2d_input_grad_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                 const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups) {
  if (takes_widened(grad_output, {input, weight}) && multiplies_bfloat16()) {
    check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight,
                          {stride, padding, dilation, groups});
    const at::Tensor found =
        paired_input_grad(grad_output, input, weight, {stride, padding, dilation, groups});
    return found.defined()
               ? found
               : conv2d_input_grad_composite(grad_output, input, weight, stride, padding, dilation, groups);
  }
  if (takes_widened(grad_output, {input, weight}))
    return rounded_to(input.scalar_type(),
                      conv2d_input_grad_cpu(widened_kept(grad_output), widened_kept(input),
                                            widened_kept(weight), stride, padding, dilation, groups));
  const Conv2dParams p{stride, padding, dilation, groups};
  if (!is_plain_float(grad_output) || !InputGradient::serves(input, weight, p))
    return conv2d_input_grad_composite(grad_output, input, weight, stride, padding, dilation, groups);
  check_conv2d_gradient("conv2d_input_grad", grad_output, input, weight, p);
  if (grad_output.numel() == 0) return at::zeros_like(input);
  const InputGradient gradient(input, weight, p, grad_output.sizes());
  at::Tensor storage;
  return gradient.run(with_border_kept(grad_output, gradient.border(), storage));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d_input_grad", TORCH_FN(conv2d_input_grad_cpu)); }

}  // namespace cnnfast::cpu
