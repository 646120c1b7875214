// inception and its gradient on the CPU: float32 stages through the kernel table, each branch's last one into
// its slice of the output, bfloat16 ones rounded on the way, or some images at a time through stages behind
// one another; other types through ATen.
#include "ops/inception.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/channel_values.h"
#include "cpu/conv2d.h"
#include "cpu/memory_pool.h"
#include "cpu/paired_backward.h"
#include "cpu/paired_chain.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/pool2d.h"
#include "cpu/pooled_backward.h"
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

bool is_plain_max_pool(const Stage& stage) {
  return stage.kind == StageKind::kMaxPool && stage.activation.kind == Activation::kNone;
}

// Stages behind one another share groups of images where that serves.
size_t run_chain(const Branch& branch, size_t begin, const std::vector<at::Tensor>& values,
                 at::TensorList weights, const OptionalTensors& biases) {
  std::vector<ChainedConv> chain;
  size_t s = begin;
  for (; s < branch.size() && branch[s].conv >= 0; ++s)
    chain.push_back({values[s], weights[branch[s].conv], biases.get(branch[s].conv), branch[s].conv_params(),
                     branch[s].activation, values[s + 1]});
  std::optional<ChainedPool> pool;
  if (s < branch.size() && is_plain_max_pool(branch[s])) pool = {branch[s].pool_params(), values[s + 1]};
  // A convolution and its pooling alone are not faster so.
  return branch.size() == 2 && pool ? 0 : paired_chain_into(chain, pool);
}

at::Tensor make_output(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return output_empty(C10_AS_INTARRAYREF_SLOW(sizes), options, at::MemoryFormat::ChannelsLast);
}

std::vector<at::Tensor> inception_cpu(const at::Tensor& input, at::TensorList weights,
                                      const OptionalTensors& biases, at::IntArrayRef branches) {
  const bool narrow = takes_widened(input);
  if (!narrow && !is_plain_float(input)) return inception_composite(input, weights, biases, branches);
  // One copy where channels are not adjacent, instead of one per branch.
  const bool adjacent = input.dim() != 4 || channels_adjacent(input);
  const auto run = [&](size_t, const Branch& branch, size_t done,
                       const std::vector<at::Tensor>& values) -> size_t {
    if (narrow)
      if (const size_t ran = run_chain(branch, done, values, weights, biases)) return ran;
    const Stage& stage = branch[done];
    const bool conv = stage.conv >= 0;
    (narrow ? run_narrow_stage : run_stage)(stage, values[done], conv ? weights[stage.conv] : at::Tensor(),
                                            conv ? biases.get(stage.conv) : OptionalTensor(),
                                            values[done + 1]);
    return 1;
  };
  return inception_by_chains(run, make_output, adjacent ? input : channels_last_copy(input), weights, biases,
                             branches);
}

at::Tensor bias_gradient(const PairedStage& stage, const std::vector<double>& sums) {
  if (!stage.wanted.bias) return {};
  return channel_tensor(sums, stage.weight.options()).to(stage.weight.scalar_type());
}

// The last convolutions whose products are of pairs. Parameters refer to the stages of `values`.
std::vector<PairedStage> paired_stages(const std::vector<StageValues>& values) {
  std::vector<PairedStage> chain;
  for (const StageValues& v : values) {
    if (v.stage.conv < 0) continue;
    const Conv2dParams params = v.stage.conv_params();
    if (takes_widened(v.output, {v.input}) &&
        multiplies_pairs(conv_geometry(v.input, v.weight, params, v.output.sizes())))
      chain.push_back({v.input, v.weight, v.output, params, v.stage.activation, v.wanted});
    else
      chain.clear();
  }
  return chain;
}

void check_gradients(const at::Tensor& grad_output, const std::vector<StageValues>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    const StageValues& v = values[i];
    const at::Tensor& grad = i + 1 == values.size() ? grad_output : v.output;
    if (v.stage.conv >= 0)
      check_conv2d_gradient("inception_backward", grad, v.input, v.weight, v.stage.conv_params());
    else
      TORCH_CHECK(grad.sizes() == v.output.sizes(), "cnnfast::inception_backward: grad_output has shape ",
                  grad.sizes(), ", but the output has ", v.output.sizes());
  }
}

// By products of pairs where that serves.
std::vector<ConvGradients> chain_backward(const at::Tensor& grad_output,
                                          const std::vector<StageValues>& values) {
  const StageValues& last = values.back();
  if (last.stage.kind == StageKind::kAvgPool) return {};
  const std::vector<PairedStage> chain = paired_stages(values);
  std::optional<Pool2dParams> pool;
  if (last.stage.conv < 0) pool = last.stage.pool_params();
  const std::vector<PairedGradients> found = paired_chain_backward(grad_output, chain, pool);
  std::vector<ConvGradients> gradients;
  for (size_t i = 0; i < found.size(); ++i)
    gradients.push_back({found[i].input, found[i].weight,
                         bias_gradient(chain[chain.size() - found.size() + i], found[i].bias)});
  if (pool && !gradients.empty()) gradients.emplace_back();
  return gradients;
}

// Of the last two stages, a convolution and a pooling.
std::vector<ConvGradients> last_two_backward(const at::Tensor& grad_output,
                                             const std::vector<StageValues>& values) {
  const StageValues &conv = values[values.size() - 2], &pool = values.back();
  if (conv.stage.conv < 0 || pool.stage.conv >= 0) return {};
  const auto found = pooled_backward(grad_output, conv, pool);
  if (!found) return {};
  return {*found, {}};
}

std::vector<ConvGradients> stages_backward(const at::Tensor& grad_output,
                                           const std::vector<StageValues>& values) {
  const StageValues& last = values.back();
  if (values.size() < 2 || !takes_widened(grad_output, {last.input})) return {};
  if (last.stage.conv < 0 && last.stage.activation.kind != Activation::kNone) return {};
  check_gradients(grad_output, values);
  // A convolution and its pooling alone are not faster by pairs, images at a time.
  auto found = values.size() > 2 || last.stage.conv >= 0 ? chain_backward(grad_output, values)
                                                         : std::vector<ConvGradients>();
  return found.empty() ? last_two_backward(grad_output, values) : found;
}

InceptionGradients inception_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                          at::TensorList weights, at::TensorList outputs,
                                          at::IntArrayRef branches, const c10::List<bool>& output_mask) {
  return inception_backward_by(stages_backward, grad_output, input, weights, outputs, branches, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("inception", TORCH_FN(inception_cpu));
  m.impl("inception_backward", TORCH_FN(inception_backward_cpu));
}

}  // namespace cnnfast::cpu
