// Shapes and strides of inception, without data.
#include "ops/inception.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

void no_stage(const Stage&, const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&) {}

std::vector<at::Tensor> inception_meta(const at::Tensor& input, at::TensorList weights,
                                       const OptionalTensors& biases, at::IntArrayRef branches) {
  return inception_by(no_stage, input, weights, biases, branches);
}

InceptionGradients inception_backward_meta(const at::Tensor&, const at::Tensor& input, at::TensorList weights,
                                           at::TensorList, at::IntArrayRef, const c10::List<bool>& mask) {
  const auto none = no_gradient(input);
  std::vector<at::Tensor> grad_weights, grad_biases;
  for (size_t i = 0; i < weights.size(); ++i) {
    grad_weights.push_back(mask.get(1 + i) ? at::empty_like(weights[i]) : no_gradient(input));
    grad_biases.push_back(mask.get(1 + weights.size() + i)
                              ? at::empty_symint({weights[i].sym_size(0)}, weights[i].options())
                              : no_gradient(input));
  }
  const at::Tensor grad_input =
      mask.get(0) ? at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                  : none;
  return {grad_input, std::move(grad_weights), std::move(grad_biases)};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("inception", TORCH_FN(inception_meta));
  m.impl("inception_backward", TORCH_FN(inception_backward_meta));
}

}  // namespace cnnfast
