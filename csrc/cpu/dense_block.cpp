// dense_block on the CPU: float32 in one buffer through the kernel table, other types through ATen.
#include "ops/dense_block.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/bf16_table.h"
#include "cpu/channel_sums.h"
#include "cpu/chunked_conv.h"
#include "cpu/memory_pool.h"
#include "cpu/normalisation.h"
#include "cpu/normalise.h"
#include "cpu/normalised_conv.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 14;

// Mean and biased variance of `count` channels of the buffer.
void compute_statistics(const at::Tensor& buffer, int64_t channel, int64_t count, const at::Tensor& mean,
                        const at::Tensor& var) {
  const Pixels pixels(buffer);
  const float* x = pixels.data + channel;
  float* m = mean.data_ptr<float>() + channel;
  float* v = var.data_ptr<float>() + channel;
  const auto sums = channel_sums(x, pixels.channels, pixels.count, count, nullptr);
  for (int64_t c = 0; c < count; ++c) m[c] = static_cast<float>(sums[c] / pixels.count);
  const auto squares = channel_sums(x, pixels.channels, pixels.count, count, m);
  for (int64_t c = 0; c < count; ++c) v[c] = static_cast<float>(squares[c] / pixels.count);
}

void copy_images(const at::Tensor& from, const at::Tensor& to) {
  const ImageSize size = image_size(from);
  const View target = view_of(to);
  const float* source = from.const_data_ptr<float>();
  parallel_team(from.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(size.images * size.height, 1, thread, team);
    copy_in(source, tensor_strides(from), size, target, begin, end);
  });
}

void run_layer(const at::Tensor& buffer, const DenseLayer& layer, const at::Tensor& weight,
               const OptionalTensor& bias, const Normalisation& norm, Activation activation) {
  const int64_t ph = layer.padding[0], pw = layer.padding[1];
  const ConvGeometry g{buffer.size(0),
                       layer.inputs,
                       layer.growth,
                       1,
                       weight.size(2),
                       weight.size(3),
                       1,
                       1,
                       1,
                       1,
                       buffer.size(2),
                       buffer.size(3),
                       {}};
  const auto packed = packed_weight(weight, g);
  const AlignedFloats scale(0);
  const AlignedFloats shift =
      pack_channels(g, present(bias) ? bias->contiguous().const_data_ptr<float>() : nullptr);
  const at::Tensor input = layer.read(buffer);
  normalised_conv(g, view_of(input), image_size(input), {ph, pw, ph, pw}, norm.prologue(activation),
                  {*packed, scale, shift}, view_of(layer.own(buffer)));
}

// One layer on bfloat16 images: by products of pairs, or some rows at a time in float32, normalised on the
// way.
void run_narrow_layer(const at::Tensor& output, const DenseLayer& layer, const DenseBlockArgs& a, size_t i,
                      const at::Tensor& mean, const at::Tensor& var) {
  const at::Tensor input = layer.read(output), own = layer.own(output);
  const OptionalTensor none;
  const Conv2dArgs conv{input, a.weights[i], a.biases.get(i), none, none, layer.params(), "none"};
  if (!multiplies_bfloat16() && ChunkedConv::serves(conv, own)) {
    const ScaleShift s = fold(mean, var, widened(a.bn_weights.get(i)), widened(a.bn_biases.get(i)), a.eps);
    const InputPrologue prologue{s.scale.data(), s.shift.data(),
                                 parse_activation("dense_block", a.activation)};
    return conv2d_into(conv, own, &prologue);
  }
  const at::Tensor activated = batch_norm_act_widened(input, mean, var, a.bn_weights.get(i),
                                                      a.bn_biases.get(i), std::nullopt, a.eps, a.activation);
  const Conv2dArgs plain{activated, a.weights[i], a.biases.get(i), none, none, layer.params(), "none"};
  multiply_pairs_into(plain, own);
}

// On bfloat16 images: what a layer adds is rounded, as eager PyTorch rounds it. Arguments must have passed
// the check.
DenseBlockOutputs narrow_dense_block(const DenseBlockArgs& a) {
  const auto layers = dense_layers(a.weights);
  const bool batch = uses_batch_statistics(a.means, a.vars);
  const at::Tensor output =
      output_empty(concrete(check_dense_block(a)), a.input.options(), at::MemoryFormat::ChannelsLast);
  const auto floats = a.input.options().dtype(at::kFloat);
  const at::Tensor mean = at::empty({batch ? output.size(1) : 0}, floats), var = at::empty_like(mean);
  const auto gather = [&](int64_t channel, int64_t count) {
    if (!batch) return;
    const Statistics found = batch_statistics(pixel_rows(output.narrow(1, channel, count)));
    mean.narrow(0, channel, count).copy_(found.mean);
    var.narrow(0, channel, count).copy_(found.var);
  };
  output.narrow(1, 0, a.input.size(1)).copy_(a.input);
  gather(0, a.input.size(1));
  for (size_t i = 0; i < layers.size(); ++i) {
    const DenseLayer& layer = layers[i];
    run_narrow_layer(output, layer, a, i, widened(layer_statistic(a.means, mean, i, layer)),
                     widened(layer_statistic(a.vars, var, i, layer)));
    gather(layer.inputs, layer.growth);
  }
  return {output, mean, var};
}

DenseBlockOutputs dense_block_cpu(const at::Tensor& input, at::TensorList weights,
                                  const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                  const OptionalTensors& bn_biases, const OptionalTensors& means,
                                  const OptionalTensors& vars, double eps, std::string_view activation) {
  if (takes_widened(input)) {
    const DenseBlockArgs args{input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation};
    check_dense_block(args);
    if (multiplies_bfloat16() || bf16_kernels().multiplies) return narrow_dense_block(args);
    const auto type = input.scalar_type();
    return rounded_to(
        {type, at::kFloat, at::kFloat},
        dense_block_cpu(widened(input), widened_kept(weights), widened(biases), widened(bn_weights),
                        widened(bn_biases), widened(means), widened(vars), eps, activation));
  }
  const bool served = is_plain_float(input) && input.numel() && all_float(bn_weights) &&
                      all_float(bn_biases) && all_float(means) && all_float(vars);
  if (!served)
    return dense_block_composite(input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation);
  const auto sizes = concrete(
      check_dense_block({input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation}));
  const auto kind = parse_activation("dense_block", activation);
  const bool batch = uses_batch_statistics(means, vars);
  const at::Tensor output = output_empty(sizes, input.options(), at::MemoryFormat::ChannelsLast);
  const at::Tensor mean = at::empty({batch ? sizes[1] : 0}, input.options()), var = at::empty_like(mean);
  copy_images(input, output.narrow(1, 0, input.size(1)));
  if (batch) compute_statistics(output, 0, input.size(1), mean, var);
  const auto layers = dense_layers(weights);
  for (size_t i = 0; i < layers.size(); ++i) {
    const Normalisation norm(layer_statistic(means, mean, i, layers[i]),
                             layer_statistic(vars, var, i, layers[i]), bn_weights.get(i), bn_biases.get(i),
                             eps);
    run_layer(output, layers[i], weights[i], biases.get(i), norm, kind);
    if (batch) compute_statistics(output, layers[i].inputs, layers[i].growth, mean, var);
  }
  return {output, mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("dense_block", TORCH_FN(dense_block_cpu)); }

}  // namespace cnnfast::cpu
