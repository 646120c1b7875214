// dense_block: every layer normalises and activates all channels so far, convolves them and writes its own
// channels behind them. One buffer holds all of it: nothing is concatenated.
#pragma once
#include <ATen/core/List.h>

#include "ops/common.h"
#include "ops/conv_gradients.h"

namespace cnnfast {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

struct DenseBlockArgs {
  const at::Tensor& input;
  at::TensorList weights;
  const OptionalTensors& biases;
  const OptionalTensors& bn_weights;
  const OptionalTensors& bn_biases;
  const OptionalTensors& means;
  const OptionalTensors& vars;
  double eps;
  std::string_view activation;
};

// Whether the batch's own statistics normalise: neither means nor vars are given.
bool uses_batch_statistics(const OptionalTensors& means, const OptionalTensors& vars);

// The output's sizes; errors name the layer.
std::vector<c10::SymInt> check_dense_block(const DenseBlockArgs& args);

// A layer's place in the buffer, and its convolution: stride 1, padding that keeps the image's size.
struct DenseLayer {
  int64_t inputs, growth;  // channels before it, channels that it adds
  std::array<int64_t, 2> padding;

  Conv2dParams params() const;
  at::Tensor read(const at::Tensor& buffer) const { return buffer.narrow(1, 0, inputs); }
  at::Tensor own(const at::Tensor& buffer) const { return buffer.narrow(1, inputs, growth); }
};
std::vector<DenseLayer> dense_layers(at::TensorList weights);

// Statistics that layer i normalises with: given ones, or those of the batch narrowed to its channels.
at::Tensor layer_statistic(const OptionalTensors& given, const at::Tensor& of_batch, size_t i,
                           const DenseLayer& layer);

// Output, and mean and biased variance of each of its channels (empty where statistics were given).
using DenseBlockOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

DenseBlockOutputs dense_block_composite(const at::Tensor& input, at::TensorList weights,
                                        const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                        const OptionalTensors& bn_biases, const OptionalTensors& means,
                                        const OptionalTensors& vars, double eps, std::string_view activation);

// Gradients of input, weights, biases, bn_weights and bn_biases.
using DenseBlockGradients = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>,
                                       std::vector<at::Tensor>, std::vector<at::Tensor>>;

// output, mean and var are what dense_block returned (its first channels are the input); output_mask says
// which gradients are wanted, in the order of the result.
DenseBlockGradients dense_block_backward_composite(const at::Tensor& grad_output, const at::Tensor& output,
                                                   at::TensorList weights, const OptionalTensors& bn_weights,
                                                   const OptionalTensors& bn_biases,
                                                   const OptionalTensors& means, const OptionalTensors& vars,
                                                   const at::Tensor& mean, const at::Tensor& var, double eps,
                                                   std::string_view activation,
                                                   const c10::List<bool>& output_mask);

// The form of the backward that uses up the gradient's memory, among kernels of a device.
constexpr int kInPlace = 1;

// output_mask taken apart.
class DenseBlockMask {
 public:
  DenseBlockMask(const c10::List<bool>& mask, size_t layers);
  bool input() const { return mask_.get(0); }
  bool weight(size_t i) const { return mask_.get(1 + i); }
  bool bias(size_t i) const { return mask_.get(1 + layers_ + i); }
  bool bn_weight(size_t i) const { return mask_.get(1 + 2 * layers_ + i); }
  bool bn_bias(size_t i) const { return mask_.get(1 + 3 * layers_ + i); }
  // Whether anything is wanted from below layer i's convolution.
  bool below(size_t i) const;
  WantedConvGradients conv(size_t i) const { return {below(i), weight(i), bias(i)}; }

 private:
  const c10::List<bool>& mask_;
  size_t layers_;
};

// Gradients as they are found; what nobody wants stays an empty tensor.
struct DenseBlockGradientLists {
  DenseBlockGradientLists(size_t layers, const at::Tensor& like);
  std::vector<at::Tensor> weights, biases, bn_weights, bn_biases;
  DenseBlockGradients with_input(at::Tensor grad_input);
};

}  // namespace cnnfast
