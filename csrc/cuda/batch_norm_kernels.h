// What batch_norm.cu offers to the tensor side: the sequences of batch_norm_launch.cuh in a stream.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/batch_norm_args.h"

namespace cnnfast::cuda {

// T: float, __half, __nv_bfloat16.
template <typename T>
struct BatchNormKernels {
  static void statistics(cudaStream_t stream, const T* input, int64_t pixel, const Layout& layout,
                         float* workspace, float* mean, float* var);
  static void forward(cudaStream_t stream, const ForwardArgs<T>& args);
  static void backward(cudaStream_t stream, const BackwardCall<T>& call);
  static void accumulate(cudaStream_t stream, const ReduceArgs<T>& reduce, bool batch_statistics,
                         float* workspace, float* grad_weight, float* grad_bias, float* factor,
                         float* constant);
  static void terms(cudaStream_t stream, Image<T> grad, Image<const T> input, const Layout& layout,
                    const float* mean, const float* factor, const float* constant);
};

}  // namespace cnnfast::cuda
