// The batch norm kernels on tensors, for the operators that contain one. Tensors must have passed the
// operators' checks and `served`; the current device is theirs.
#pragma once
#include "cuda/batch_norm_args.h"
#include "ops/batch_norm2d.h"

namespace cnnfast::cuda {

struct Statistics {
  at::Tensor mean, var;  // float32; var is biased
};

Statistics batch_statistics(const at::Tensor& input);
// Into memory of the caller's, one number per channel: for channels of a block that come one after another.
void batch_statistics_into(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var);

// Parameters of one normalisation, kept in float32.
struct Normalisation {
  Normalisation(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps);
  at::Tensor mean, var, weight, bias;
  float eps;
};

// act(norm(input) + residual) into `output`, a tensor of its own or a slice of channels. With `mask` (see
// mask_like) ReLU's bits too.
void normalise_into(const at::Tensor& input, const Normalisation& norm, const OptionalTensor& residual,
                    const Activation& activation, const at::Tensor& output, const at::Tensor& mask = {});
at::Tensor mask_like(const at::Tensor& images);

// act(input * scale + bias + residual) into `output`, which may be the input: the end of a convolution.
void finish_into(const at::Tensor& input, const OptionalTensor& scale, const OptionalTensor& bias,
                 const OptionalTensor& residual, const Activation& activation, const at::Tensor& output);

// For a layer of a dense block, whose activated input is not kept. `grad`, of that input, becomes:
// accumulate += scale * (gradient behind the activation); gradients of weight and bias (float32, may be
// undefined); and where statistics are the batch's, what they add per channel to `factor` and `constant`
// (float32; undefined where they are given), for add_terms to add in one pass for all layers.
void accumulate_gradient(const at::Tensor& grad, const at::Tensor& input, const Normalisation& norm,
                         const Activation& activation, const at::Tensor& accumulate,
                         const at::Tensor& grad_weight, const at::Tensor& grad_bias, const at::Tensor& factor,
                         const at::Tensor& constant);
// grad += factor * (input - mean) + constant, per channel.
void add_terms(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mean,
               const at::Tensor& factor, const at::Tensor& constant);

at::Tensor batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, double eps, std::string_view activation);
// The gradient by the activation's result, whole tensors in whole tensors out.
BatchNormGradients batch_norm2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                         const at::Tensor& mean, const at::Tensor& var,
                                         const OptionalTensor& weight, const at::Tensor& output, double eps,
                                         std::string_view activation, bool batch_statistics,
                                         std::array<bool, 6> output_mask);

}  // namespace cnnfast::cuda
