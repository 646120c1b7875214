// Batch norm, pooling, local response norm, and blocks that no Triton kernel serves as a whole, on CUDA
// tensors: ATen's computation or the kernels of csrc/cuda.
#include <torch/library.h>

#include "gpu/norms.h"
#include "ops/bn_act_conv2d.h"
#include "ops/dense_block.h"
#include "ops/global_avg_pool2d.h"
#include "ops/inception.h"
#include "ops/local_response_norm.h"
#include "ops/pool2d.h"

namespace cnnfast::gpu {
namespace {

// The schema's name, the composite.
#define CNNFAST_CHOSEN(_)                                                 \
  _(batch_norm2d, batch_norm2d_composite)                                 \
  _(batch_norm2d_backward, batch_norm2d_backward_composite)               \
  _(batch_norm2d_relu, batch_norm2d_relu_composite)                       \
  _(batch_norm2d_relu_backward, batch_norm2d_relu_backward_composite)     \
  _(conv2d_batch_norm_backward, conv2d_batch_norm_backward_composite)     \
  _(bn_act_conv2d_backward, bn_act_conv2d_backward_composite)             \
  _(max_pool2d, max_pool2d_composite)                                     \
  _(max_pool2d_backward, max_pool2d_backward_composite)                   \
  _(avg_pool2d, avg_pool2d_composite)                                     \
  _(avg_pool2d_backward, avg_pool2d_backward_composite)                   \
  _(global_avg_pool2d, global_avg_pool2d_composite)                       \
  _(local_response_norm, local_response_norm_composite)                   \
  _(local_response_norm_backward, local_response_norm_backward_composite) \
  _(dense_block_backward, dense_block_backward_composite)

#define CNNFAST_NAMED(op, composite) CNNFAST_NAME(op##_name, #op);
CNNFAST_CHOSEN(CNNFAST_NAMED)
CNNFAST_NAME(inception_name, "inception");
CNNFAST_NAME(dense_block_name, "dense_block");

// It uses up a gradient's memory, so that it cannot be timed: the kernels of csrc/cuda where they are built
// and serve the call, unless another backend is forced.
DenseBlockGradients dense_block_backward_in_place(const at::Tensor& grad_output, const at::Tensor& output,
                                                  at::TensorList weights, const OptionalTensors& bn_weights,
                                                  const OptionalTensors& bn_biases,
                                                  const OptionalTensors& means, const OptionalTensors& vars,
                                                  const at::Tensor& mean, const at::Tensor& var, double eps,
                                                  std::string_view activation,
                                                  const c10::List<bool>& output_mask) {
  const auto call = [&](auto function) {
    return function(grad_output, output, weights, bn_weights, bn_biases, means, vars, mean, var, eps,
                    activation, output_mask);
  };
  const auto kernels = DeviceKernel<dense_block_backward_composite, kInPlace>::get();
  const std::vector<Option> options{{"cuda", why_no_cuda(kernels)}, {"aten", ""}};
  const size_t chosen =
      choose("dense_block_backward_", "", options, forced_among(options), Times::of_process(), Timer());
  if (chosen != 0 || output.numel() == 0) return call(dense_block_backward_composite);
  try {
    return call(kernels);
  } catch (const Unserved& answer) {
    TORCH_CHECK(forced_backend() != "cuda",
                "cnnfast::dense_block_backward_: CNNFAST_BACKEND=cuda cannot serve "
                "this call: ",
                answer.what());
    return call(dense_block_backward_composite);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) {
#define CNNFAST_REGISTERED(op, composite) m.impl(#op, &Chosen<op##_name, composite>::run);
  CNNFAST_CHOSEN(CNNFAST_REGISTERED)
  m.impl("inception", &Chosen<inception_name, inception_composite, true>::run);
  m.impl("dense_block", &Chosen<dense_block_name, dense_block_composite, true>::run);
  m.impl("batch_norm_act", &BatchNormAct::run);
  m.impl("dense_block_backward_", TORCH_FN(dense_block_backward_in_place));
}

}  // namespace cnnfast::gpu
