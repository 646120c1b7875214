// Shapes and strides of dense_block, without data.
#include "ops/dense_block.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "ops/batch_norm.h"

namespace cnnfast {
namespace {

DenseBlockOutputs dense_block_meta(const at::Tensor& input, at::TensorList weights,
                                   const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                   const OptionalTensors& bn_biases, const OptionalTensors& means,
                                   const OptionalTensors& vars, double eps, std::string_view activation) {
  const auto sizes =
      check_dense_block({input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation});
  const auto options = input.options().dtype(statistics_type(input.scalar_type()));
  const std::vector<c10::SymInt> channels{uses_batch_statistics(means, vars) ? sizes[1] : c10::SymInt(0)};
  return {at::empty_symint(sizes, input.options(), at::MemoryFormat::ChannelsLast),
          at::empty_symint(channels, options), at::empty_symint(channels, options)};
}

at::Tensor like_optional(bool wanted, const OptionalTensor& t, const at::Tensor& otherwise) {
  return wanted ? at::empty_symint({t->sym_size(0)}, t->options()) : no_gradient(otherwise);
}

DenseBlockGradients dense_block_backward_meta(const at::Tensor&, const at::Tensor& output,
                                              at::TensorList weights, const OptionalTensors& bn_weights,
                                              const OptionalTensors& bn_biases, const OptionalTensors&,
                                              const OptionalTensors&, const at::Tensor&, const at::Tensor&,
                                              double, std::string_view, const c10::List<bool>& output_mask) {
  const DenseBlockMask mask(output_mask, weights.size());
  DenseBlockGradientLists found(weights.size(), output);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (mask.weight(i)) found.weights[i] = at::empty_like(weights[i]);
    if (mask.bias(i)) found.biases[i] = at::empty_symint({weights[i].sym_size(0)}, weights[i].options());
    found.bn_weights[i] = like_optional(mask.bn_weight(i), bn_weights.get(i), output);
    found.bn_biases[i] = like_optional(mask.bn_bias(i), bn_biases.get(i), output);
  }
  if (!mask.input()) return found.with_input(no_gradient(output));
  auto sizes = output.sym_sizes().vec();
  sizes[1] = weights[0].sym_size(1);
  return found.with_input(at::empty_symint(sizes, output.options(), at::MemoryFormat::ChannelsLast));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("dense_block", TORCH_FN(dense_block_meta));
  m.impl("dense_block_backward", TORCH_FN(dense_block_backward_meta));
  m.impl("dense_block_backward_", TORCH_FN(dense_block_backward_meta));
}

}  // namespace cnnfast
