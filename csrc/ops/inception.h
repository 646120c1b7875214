// inception: branches of convolutions and poolings over one input, their outputs concatenated on channels.
// Every branch's last stage writes into its slice of the output; nothing is concatenated afterwards.
#pragma once
#include <ATen/core/List.h>
#include <c10/util/FunctionRef.h>

#include "ops/common.h"
#include "ops/conv_gradients.h"
#include "ops/pool2d.h"

namespace cnnfast {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

enum class StageKind : int64_t { kConv = 0, kMaxPool = 1, kAvgPool = 2 };

struct Stage {
  StageKind kind;
  Activation activation;
  std::array<int64_t, 2> kernel, stride, padding;
  int64_t option;  // groups of a convolution; whether average pooling counts padding
  int64_t conv;    // place of a convolution's weight and bias

  Conv2dParams conv_params() const;
  Pool2dParams pool_params() const;
};

using Branch = std::vector<Stage>;

// The int list of the operators: number of branches, then per branch the number of stages and nine numbers
// for each: kind, activation, kernel, stride and padding (vertical, horizontal each), option. Errors name
// operator, branch and stage.
std::vector<Branch> parse_branches(const char* op, at::IntArrayRef words);

struct InceptionSizes {
  std::vector<std::vector<std::vector<c10::SymInt>>> stages;  // per branch and stage
  std::vector<c10::SymInt> channels;                          // per branch
  std::vector<c10::SymInt> output;
};

// Errors name branch and stage.
InceptionSizes check_inception(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                               const std::vector<Branch>& branches);

// Computes one stage into `target`, a tensor of its own or a slice of the output.
using StageRunner = void (*)(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
                             const OptionalTensor& bias, const at::Tensor& target);

// The same, told the number of the branch.
using BranchRunner =
    c10::function_ref<void(size_t branch, const Stage& stage, const at::Tensor& input,
                           const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target)>;

// The whole operator around `run`: output, then what the backward needs of the stages before each branch's
// last, in order.
std::vector<at::Tensor> inception_by(StageRunner run, const at::Tensor& input, at::TensorList weights,
                                     const OptionalTensors& biases, at::IntArrayRef branches);
std::vector<at::Tensor> inception_by_branches(BranchRunner run, const at::Tensor& input,
                                              at::TensorList weights, const OptionalTensors& biases,
                                              at::IntArrayRef branches);

// Computes a branch, or its first stages, and says how many: stage s from values[s] into values[s + 1]. With
// `done` stages behind it already.
using ChainRunner = c10::function_ref<size_t(size_t number, const Branch& branch, size_t done,
                                             const std::vector<at::Tensor>& values)>;
// Memory for an output of these sizes.
using OutputMaker = at::Tensor (*)(c10::SymIntArrayRef sizes, const at::TensorOptions& options);
std::vector<at::Tensor> inception_by_chains(ChainRunner run, OutputMaker make, const at::Tensor& input,
                                            at::TensorList weights, const OptionalTensors& biases,
                                            at::IntArrayRef branches);

std::vector<at::Tensor> inception_composite(const at::Tensor& input, at::TensorList weights,
                                            const OptionalTensors& biases, at::IntArrayRef branches);

using InceptionGradients = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;

// A stage of a branch with what its gradients are made from.
struct StageValues {
  Stage stage;
  at::Tensor input, weight, output;  // weight: of a convolution
  WantedConvGradients wanted;
};
// Gradients of the last of these stages, one behind the other, as many as it likes; that of the input is in
// the first. They are convolutions, but for a pooling, perhaps, at the end. None: gradients come one by one.
using ChainBackward = std::vector<ConvGradients> (*)(const at::Tensor& grad_output,
                                                     const std::vector<StageValues>& chain);
InceptionGradients inception_backward_by(ChainBackward run, const at::Tensor& grad_output,
                                         const at::Tensor& input, at::TensorList weights,
                                         at::TensorList outputs, at::IntArrayRef branches,
                                         const c10::List<bool>& output_mask);

// Gradients of input, weights and biases. `outputs` is what inception returned; output_mask says which
// gradients are wanted, input first, then weights, then biases.
InceptionGradients inception_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      at::TensorList weights, at::TensorList outputs,
                                      at::IntArrayRef branches, const c10::List<bool>& output_mask);

}  // namespace cnnfast
