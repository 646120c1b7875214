// inception on the CPU: float32 stages through the kernel table, each branch's last one into its slice of the
// output; other types through ATen.
#include "ops/inception.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/pool2d.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 15;

// A pooling kernel has no activation of its own.
void activate_in_place(const at::Tensor& images, Activation activation) {
  if (activation.kind == Activation::kNone || images.numel() == 0) return;
  const View v = view_of(images);
  const int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  parallel_team(images.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(images.size(0) * height, 1, thread, team);
    for (int64_t row = begin; row < end; ++row) {
      float* pixels = v.data + row / height * v.image + row % height * v.row;
      kernels().affine({pixels, nullptr, pixels, nullptr, nullptr, v.pixel, 0, v.pixel, channels, activation},
                       width);
    }
  });
}

void run_stage(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
               const OptionalTensor& bias, const at::Tensor& target) {
  const OptionalTensor none;
  if (stage.kind == StageKind::kConv)
    return conv2d_into(
        {input, weight, bias, none, none, stage.conv_params(), plain_activation_name(stage.activation.kind)},
        target);
  if (stage.kind == StageKind::kMaxPool)
    max_pool2d_into(input, stage.pool_params(), target);
  else
    avg_pool2d_into(input, stage.pool_params(), stage.option != 0, std::nullopt, target);
  activate_in_place(target, stage.activation);
}

// bfloat16 images where instructions multiply them.
void run_stage_by_pairs(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
                        const OptionalTensor& bias, const at::Tensor& target) {
  const OptionalTensor none;
  if (stage.kind == StageKind::kConv &&
      paired_conv2d_into({input, weight, bias, none, none, stage.conv_params(),
                          plain_activation_name(stage.activation.kind)},
                         target))
    return;
  const at::Tensor output =
      at::empty(target.sizes(), target.options().dtype(at::kFloat), at::MemoryFormat::ChannelsLast);
  run_stage(stage, widened(input), weight.defined() ? widened(weight) : weight, bias, output);
  target.copy_(output);
}

std::vector<at::Tensor> inception_cpu(const at::Tensor& input, at::TensorList weights,
                                      const OptionalTensors& biases, at::IntArrayRef branches) {
  if (takes_widened(input)) {
    if (multiplies_bfloat16()) return inception_by(run_stage_by_pairs, input, weights, biases, branches);
    check_inception(input, weights, biases, parse_branches("inception", branches));
    return rounded_to(input.scalar_type(),
                      inception_cpu(widened(input), widened_kept(weights), widened(biases), branches));
  }
  if (!is_plain_float(input)) return inception_composite(input, weights, biases, branches);
  // One copy where channels are not adjacent, instead of one per branch.
  const bool adjacent = input.dim() != 4 || channels_adjacent(input);
  return inception_by(run_stage, adjacent ? input : input.contiguous(at::MemoryFormat::ChannelsLast), weights,
                      biases, branches);
}

InceptionGradients inception_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                          at::TensorList weights, at::TensorList outputs,
                                          at::IntArrayRef branches, const c10::List<bool>& output_mask) {
  if (multiplies_bfloat16() || !takes_widened(grad_output, {input}))
    return inception_backward(grad_output, input, weights, outputs, branches, output_mask);
  const auto type = input.scalar_type();
  auto [of_input, of_weights, of_biases] =
      inception_backward(widened_kept(grad_output), widened_kept(input), widened_kept(weights),
                         widened_kept(outputs), branches, output_mask);
  return {rounded_to(type, of_input), rounded_to(type, std::move(of_weights)),
          rounded_to(type, std::move(of_biases))};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("inception", TORCH_FN(inception_cpu));
  m.impl("inception_backward", TORCH_FN(inception_backward_cpu));
}

}  // namespace cnnfast::cpu
