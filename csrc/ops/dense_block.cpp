#include "ops/dense_block.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/batch_norm.h"

namespace cnnfast {
namespace {

constexpr const char* kOp = "dense_block";
constexpr int64_t kOnes[2] = {1, 1};

bool any_present(const OptionalTensors& list) {
  for (size_t i = 0; i < list.size(); ++i)
    if (present(list.get(i))) return true;
  return false;
}

void check_list(const char* name, const OptionalTensors& list, size_t layers) {
  TORCH_CHECK(list.size() == layers, "cnnfast::", kOp, ": ", name, " has ", list.size(),
              " entries, but weights has ", layers);
}

// One number for each of the layer's input channels, in the images' type or that of their statistics.
void check_norm(const char* where, const char* name, const OptionalTensor& t, const at::Tensor& input,
                const c10::SymInt& channels) {
  if (!present(t)) return;
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == channels, "cnnfast::", where, ": ", name,
              " must have shape (", channels, "), one number per channel so far, not ", t->sym_sizes());
  TORCH_CHECK(t->device() == input.device(), "cnnfast::", where, ": input is on ", input.device(), ", but ",
              name, " is on ", t->device());
  TORCH_CHECK(
      t->scalar_type() == input.scalar_type() || t->scalar_type() == statistics_type(input.scalar_type()),
      "cnnfast::", where, ": input is ", input.scalar_type(), ", but ", name, " is ", t->scalar_type());
}

void check_statistics_given(const DenseBlockArgs& a) {
  if (uses_batch_statistics(a.means, a.vars)) return;
  check_list("means", a.means, a.weights.size());
  check_list("vars", a.vars, a.weights.size());
  for (size_t i = 0; i < a.weights.size(); ++i)
    TORCH_CHECK(present(a.means.get(i)) && present(a.vars.get(i)), "cnnfast::", kOp, ": layer ", i,
                ": means and vars must be given for every layer, or for none");
}

void check_layer(const DenseBlockArgs& a, size_t i, const std::vector<c10::SymInt>& sizes) {
  const std::string where = std::string(kOp) + ": layer " + std::to_string(i);
  const char* op = where.c_str();
  const at::Tensor& weight = a.weights[i];
  check_rank(op, "weight", weight, 4);
  const int64_t kernel[2] = {weight.sym_size(2).guard_int(__FILE__, __LINE__),
                             weight.sym_size(3).guard_int(__FILE__, __LINE__)};
  TORCH_CHECK(kernel[0] % 2 == 1 && kernel[1] % 2 == 1, "cnnfast::", op, ": weight ", weight.sym_sizes(),
              " must have an odd kernel height and width, for the image to keep its size");
  const int64_t padding[2] = {kernel[0] / 2, kernel[1] / 2};
  conv2d_output_sizes(op, a.input, sizes, weight, {kOnes, padding, kOnes, 1});
  check_parameter(op, a.input, "bias", a.biases.get(i));
  check_per_channel(op, "bias", a.biases.get(i), weight.sym_size(0));
  check_norm(op, "bn_weight", a.bn_weights.get(i), a.input, sizes[1]);
  check_norm(op, "bn_bias", a.bn_biases.get(i), a.input, sizes[1]);
  if (uses_batch_statistics(a.means, a.vars)) return;
  check_norm(op, "mean", a.means.get(i), a.input, sizes[1]);
  check_norm(op, "var", a.vars.get(i), a.input, sizes[1]);
}

}  // namespace

bool uses_batch_statistics(const OptionalTensors& means, const OptionalTensors& vars) {
  return !any_present(means) && !any_present(vars);
}

std::vector<c10::SymInt> check_dense_block(const DenseBlockArgs& a) {
  check_rank(kOp, "input", a.input, 4);
  TORCH_CHECK(at::isFloatingType(a.input.scalar_type()), "cnnfast::", kOp,
              ": input must be of a floating-point type, not ", a.input.scalar_type());
  TORCH_CHECK(!a.weights.empty(), "cnnfast::", kOp, ": weights must hold at least one layer");
  check_list("biases", a.biases, a.weights.size());
  check_list("bn_weights", a.bn_weights, a.weights.size());
  check_list("bn_biases", a.bn_biases, a.weights.size());
  check_statistics_given(a);
  check_pre_activation(kOp, a.activation);
  auto sizes = a.input.sym_sizes().vec();
  TORCH_CHECK_VALUE(
      !uses_batch_statistics(a.means, a.vars) || sizes[0] * sizes[2] * sizes[3] != 1, "cnnfast::", kOp,
      ": batch statistics need more than one value per channel, but input has shape ", a.input.sym_sizes());
  for (size_t i = 0; i < a.weights.size(); ++i) {
    check_layer(a, i, sizes);
    sizes[1] += a.weights[i].sym_size(0);
  }
  return sizes;
}

Conv2dParams DenseLayer::params() const { return {kOnes, padding, kOnes, 1}; }

std::vector<DenseLayer> dense_layers(at::TensorList weights) {
  std::vector<DenseLayer> layers;
  for (const auto& w : weights) layers.push_back({w.size(1), w.size(0), {w.size(2) / 2, w.size(3) / 2}});
  return layers;
}

at::Tensor layer_statistic(const OptionalTensors& given, const at::Tensor& of_batch, size_t i,
                           const DenseLayer& layer) {
  return of_batch.numel() ? of_batch.narrow(0, 0, layer.inputs) : *given.get(i);
}

namespace {

// Mean and biased variance of every channel, each computed once; empty where they are not wanted.
struct Statistics {
  Statistics(bool wanted, const at::Tensor& output)
      : type(statistics_type(output.scalar_type())),
        mean(at::empty({wanted ? output.size(1) : 0}, output.options().dtype(type))),
        var(at::empty_like(mean)) {}

  void compute(const at::Tensor& output, int64_t channel, int64_t count) const {
    if (!mean.numel()) return;
    const auto [v, m] = at::var_mean(as_type(output.narrow(1, channel, count), type),
                                     at::IntArrayRef({0, 2, 3}), /*correction=*/0);
    mean.narrow(0, channel, count).copy_(m);
    var.narrow(0, channel, count).copy_(v);
  }

  at::ScalarType type;
  at::Tensor mean, var;
};

}  // namespace

DenseBlockOutputs dense_block_composite(const at::Tensor& input, at::TensorList weights,
                                        const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                        const OptionalTensors& bn_biases, const OptionalTensors& means,
                                        const OptionalTensors& vars, double eps,
                                        std::string_view activation) {
  const auto sizes =
      check_dense_block({input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation});
  const at::Tensor output = at::empty_symint(sizes, input.options(), at::MemoryFormat::ChannelsLast);
  output.narrow(1, 0, input.size(1)).copy_(input);
  const Statistics statistics(uses_batch_statistics(means, vars), output);
  statistics.compute(output, 0, input.size(1));
  const auto layers = dense_layers(weights);
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto p = layers[i].params();
    const at::Tensor activated = batch_norm_act_composite(
        layers[i].read(output), layer_statistic(means, statistics.mean, i, layers[i]),
        layer_statistic(vars, statistics.var, i, layers[i]), bn_weights.get(i), bn_biases.get(i),
        std::nullopt, eps, activation);
    layers[i].own(output).copy_(at::conv2d(activated, as_type(weights[i], input.scalar_type()),
                                           as_type(biases.get(i), input.scalar_type()), p.stride, p.padding,
                                           p.dilation, p.groups));
    statistics.compute(output, layers[i].inputs, layers[i].growth);
  }
  return {output, statistics.mean, statistics.var};
}

DenseBlockMask::DenseBlockMask(const c10::List<bool>& mask, size_t layers) : mask_(mask), layers_(layers) {
  TORCH_CHECK(mask.size() == 1 + 4 * layers, "cnnfast::dense_block_backward: output_mask has ", mask.size(),
              " entries, but there are ", layers, " layers");
}

bool DenseBlockMask::below(size_t i) const {
  bool any = input() || bn_weight(i) || bn_bias(i);
  for (size_t j = 0; j < i && !any; ++j) any = weight(j) || bias(j) || bn_weight(j) || bn_bias(j);
  return any;
}

DenseBlockGradientLists::DenseBlockGradientLists(size_t layers, const at::Tensor& like) {
  for (auto* list : {&weights, &biases, &bn_weights, &bn_biases})
    for (size_t i = 0; i < layers; ++i) list->push_back(no_gradient(like));
}

DenseBlockGradients DenseBlockGradientLists::with_input(at::Tensor grad_input) {
  return {std::move(grad_input), std::move(weights), std::move(biases), std::move(bn_weights),
          std::move(bn_biases)};
}

DenseBlockGradients dense_block_backward_composite(const at::Tensor& grad_output, const at::Tensor& output,
                                                   at::TensorList weights, const OptionalTensors& bn_weights,
                                                   const OptionalTensors& bn_biases,
                                                   const OptionalTensors& means, const OptionalTensors& vars,
                                                   const at::Tensor& mean, const at::Tensor& var, double eps,
                                                   std::string_view activation,
                                                   const c10::List<bool>& output_mask) {
  const auto layers = dense_layers(weights);
  const DenseBlockMask mask(output_mask, layers.size());
  DenseBlockGradientLists found(layers.size(), output);
  const auto kind = parse_activation("dense_block_backward", activation);
  const auto type = statistics_type(output.scalar_type());
  const bool batch = mean.numel() != 0;
  const at::Tensor grad = fresh_channels_last(grad_output);
  for (size_t i = layers.size(); i-- > 0;) {
    const DenseLayer& layer = layers[i];
    if (!mask.conv(i).any()) continue;
    const at::Tensor m = as_type(layer_statistic(means, mean, i, layer), type),
                     v = as_type(layer_statistic(vars, var, i, layer), type);
    const at::Tensor activated = batch_norm_act_composite(layer.read(output), m, v, bn_weights.get(i),
                                                          bn_biases.get(i), std::nullopt, eps, activation);
    auto conv = conv_gradients(layer.own(grad), activated, weights[i], layer.params(), mask.conv(i));
    if (mask.weight(i)) found.weights[i] = conv.weight;
    if (mask.bias(i)) found.biases[i] = conv.bias;
    if (!mask.below(i)) continue;
    const OptionalTensor gamma = bn_weights.get(i), beta = bn_biases.get(i);
    if (output.numel() == 0) {  // ATen divides by the number of pixels
      if (mask.bn_weight(i)) found.bn_weights[i] = at::zeros_like(*gamma);
      if (mask.bn_bias(i)) found.bn_biases[i] = at::zeros_like(*beta);
      continue;
    }
    const auto [grad_x, grad_gamma, grad_beta] = at::native_batch_norm_backward(
        activation_backward(conv.input, activated, kind),
        layer.read(output).contiguous(at::MemoryFormat::ChannelsLast),
        present(gamma) ? as_type(*gamma, type) : gamma, m, v, m, at::rsqrt(v + eps), batch, eps,
        {true, mask.bn_weight(i), mask.bn_bias(i)});
    layer.read(grad).add_(grad_x);
    if (mask.bn_weight(i)) found.bn_weights[i] = as_type(grad_gamma, gamma->scalar_type());
    if (mask.bn_bias(i)) found.bn_biases[i] = as_type(grad_beta, beta->scalar_type());
  }
  return found.with_input(mask.input() ? fresh_channels_last(layers[0].read(grad)) : no_gradient(output));
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("dense_block", TORCH_FN(dense_block_composite));
  m.impl("dense_block_backward", TORCH_FN(dense_block_backward_composite));
  m.impl("dense_block_backward_", TORCH_FN(dense_block_backward_composite));
}

}  // namespace cnnfast
