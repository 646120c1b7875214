// inception on the CPU: float32 stages through the kernel table, each branch's last one into its slice of the
// output, bfloat16 ones rounded on the way; other types through ATen.
#include "ops/inception.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/memory_pool.h"
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

// The same on bfloat16 images: by products of pairs, or in float32 and rounded on the way to the target.
void run_narrow_stage(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
                      const OptionalTensor& bias, const at::Tensor& target) {
  const bool conv = stage.kind == StageKind::kConv;
  const OptionalTensor none;
  if (conv && paired_conv2d_into({input, weight, bias, none, none, stage.conv_params(),
                                  plain_activation_name(stage.activation.kind)},
                                 target))
    return;
  if (conv || stage.activation.kind == Activation::kNone)
    return run_stage(stage, input, weight, bias, target);
  const at::Tensor output =
      output_empty(target.sizes(), target.options().dtype(at::kFloat), at::MemoryFormat::ChannelsLast);
  run_stage(stage, widened(input), weight, bias, output);
  write_images(view_of(output), target);
}

std::vector<at::Tensor> inception_cpu(const at::Tensor& input, at::TensorList weights,
                                      const OptionalTensors& biases, at::IntArrayRef branches) {
  const bool narrow = takes_widened(input);
  if (!narrow && !is_plain_float(input)) return inception_composite(input, weights, biases, branches);
  // One copy where channels are not adjacent, instead of one per branch.
  const bool adjacent = input.dim() != 4 || channels_adjacent(input);
  return inception_by(narrow ? run_narrow_stage : run_stage,
                      adjacent ? input : input.contiguous(at::MemoryFormat::ChannelsLast), weights, biases,
                      branches);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("inception", TORCH_FN(inception_cpu)); }

}  // namespace cnnfast::cpu
