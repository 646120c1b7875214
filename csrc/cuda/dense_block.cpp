// dense_block on CUDA tensors, forward and backward, in one buffer each: layers read the channels so far by
// their pixel stride and write their own behind them.
#include "ops/dense_block.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/batch_norm_tensors.h"
#include "cuda/convolution.h"
#include "cuda/tensors.h"
#include "ops/device_kernel.h"

namespace cnnfast::cuda {
namespace {

Normalisation normalisation_of(const OptionalTensors& means, const OptionalTensors& vars,
                               const at::Tensor& mean, const at::Tensor& var,
                               const OptionalTensors& bn_weights, const OptionalTensors& bn_biases, size_t i,
                               const DenseLayer& layer, double eps) {
  return {layer_statistic(means, mean, i, layer), layer_statistic(vars, var, i, layer), bn_weights.get(i),
          bn_biases.get(i), eps};
}

at::Tensor activated_input(const at::Tensor& buffer, const DenseLayer& layer, const Normalisation& norm,
                           const Activation& activation) {
  const at::Tensor x = layer.read(buffer), activated = empty_images(x.sizes(), buffer);
  normalise_into(x, norm, std::nullopt, activation, activated);
  return activated;
}

DenseBlockOutputs dense_block(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                              const OptionalTensors& bn_weights, const OptionalTensors& bn_biases,
                              const OptionalTensors& means, const OptionalTensors& vars, double eps,
                              std::string_view activation) {
  const auto sizes =
      check_dense_block({input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation});
  const Activation act = parse_activation("dense_block", activation);
  const int64_t channels = sizes[1].expect_int();
  if (!served(input) || input.numel() == 0 || !has_kernel(act) || channels > kMostChannels) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  const bool batch = uses_batch_statistics(means, vars);
  const at::Tensor output = empty_images({input.size(0), channels, input.size(2), input.size(3)}, input);
  const at::Tensor mean = empty_floats(batch ? channels : 0, input), var = at::empty_like(mean);
  const auto statistics = [&](int64_t first, int64_t count) {
    if (batch)
      batch_statistics_into(output.narrow(1, first, count), mean.narrow(0, first, count),
                            var.narrow(0, first, count));
  };
  // The block's output holds its input: the one copy.
  finish_into(input, std::nullopt, std::nullopt, std::nullopt, {}, output.narrow(1, 0, input.size(1)));
  statistics(0, input.size(1));
  const auto layers = dense_layers(weights);
  const OptionalTensor none;
  for (size_t i = 0; i < layers.size(); ++i) {
    const DenseLayer& layer = layers[i];
    const Normalisation norm = normalisation_of(means, vars, mean, var, bn_weights, bn_biases, i, layer, eps);
    const at::Tensor own = layer.own(output);
    const BnActConv2dArgs in_one{layer.read(output), weights[i], biases.get(i), bn_weights.get(i),
                                 bn_biases.get(i),   norm.mean,  norm.var,      none,
                                 layer.params(),     activation};
    if (!bn_act_conv2d_into(in_one, eps, own))
      conv2d_into({activated_input(output, layer, norm, act), weights[i], biases.get(i), none, none,
                   layer.params(), "none"},
                  own);
    statistics(layer.inputs, layer.growth);
  }
  return {output, mean, var};
}

template <bool kUsesUpGradient>
DenseBlockGradients dense_block_backward(const at::Tensor& grad_output, const at::Tensor& given_output,
                                         at::TensorList weights, const OptionalTensors& bn_weights,
                                         const OptionalTensors& bn_biases, const OptionalTensors& means,
                                         const OptionalTensors& vars, const at::Tensor& mean,
                                         const at::Tensor& var, double eps, std::string_view activation,
                                         const c10::List<bool>& output_mask) {
  const Activation act = parse_activation("dense_block_backward", activation);
  if (!served(given_output) || !served_with(given_output, grad_output) || given_output.numel() == 0 ||
      !has_kernel(act) || !output_determines(act))
    throw Unserved();
  const c10::cuda::CUDAGuard guard(given_output.device());
  const auto layers = dense_layers(weights);
  const DenseBlockMask mask(output_mask, layers.size());
  const at::Tensor output = given_output.contiguous(at::MemoryFormat::ChannelsLast);
  const bool in_place = kUsesUpGradient && grad_output.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor grad = in_place ? grad_output : fresh_channels_last(grad_output);
  DenseBlockGradientLists found(layers.size(), output);
  const bool batch = mean.numel() != 0;
  // What the statistics of all layers add to a channel's gradient: collected, and added in one pass when the
  // gradient is to be read itself.
  const at::Tensor terms = at::zeros({batch ? 2 : 0, output.size(1)}, output.options().dtype(at::kFloat));
  const auto term = [&](int64_t which, int64_t first, int64_t count) {
    return batch ? terms.select(0, which).narrow(0, first, count) : at::Tensor();
  };
  const auto finish_channels = [&](int64_t first, int64_t count) {
    if (batch)
      add_terms(grad.narrow(1, first, count), output.narrow(1, first, count), mean.narrow(0, first, count),
                term(0, first, count), term(1, first, count));
  };
  const auto parameter = [&](bool wanted, int64_t count) {
    return wanted ? empty_floats(count, output) : at::Tensor();
  };
  for (size_t i = layers.size(); i-- > 0;) {
    const DenseLayer& layer = layers[i];
    if (!mask.conv(i).any()) continue;
    finish_channels(layer.inputs, layer.growth);
    const Normalisation norm = normalisation_of(means, vars, mean, var, bn_weights, bn_biases, i, layer, eps);
    at::Tensor activated = activated_input(output, layer, norm, act);
    const auto conv = conv_gradients(layer.own(grad), activated, weights[i], layer.params(), mask.conv(i));
    activated.reset();
    if (mask.weight(i)) found.weights[i] = conv.weight;
    if (mask.bias(i)) found.biases[i] = conv.bias;
    if (!mask.below(i)) continue;
    const at::Tensor grad_weight = parameter(mask.bn_weight(i), layer.inputs),
                     grad_bias = parameter(mask.bn_bias(i), layer.inputs);
    accumulate_gradient(conv.input, layer.read(output), norm, act, layer.read(grad), grad_weight, grad_bias,
                        term(0, 0, layer.inputs), term(1, 0, layer.inputs));
    if (mask.bn_weight(i)) found.bn_weights[i] = as_type(grad_weight, bn_weights.get(i)->scalar_type());
    if (mask.bn_bias(i)) found.bn_biases[i] = as_type(grad_bias, bn_biases.get(i)->scalar_type());
  }
  if (!mask.input()) return found.with_input(no_gradient(output));
  finish_channels(0, layers[0].inputs);
  return found.with_input(fresh_channels_last(layers[0].read(grad)));
}

[[maybe_unused]] const bool registered[] = {
    DeviceKernel<dense_block_composite>::set(dense_block),
    DeviceKernel<dense_block_backward_composite>::set(dense_block_backward<false>),
    DeviceKernel<dense_block_backward_composite, kInPlace>::set(dense_block_backward<true>)};

}  // namespace
}  // namespace cnnfast::cuda
