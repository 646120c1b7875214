// What lrn.cu offers to the tensor side: the kernels of lrn_launch.cuh in a stream.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/lrn_args.h"

namespace cnnfast::cuda {

// T: float, __half, __nv_bfloat16.
template <typename T>
struct LrnKernels {
  static void forward(cudaStream_t stream, const LrnArgs<T>& args);
  static void backward(cudaStream_t stream, const LrnArgs<T>& args);
};

}  // namespace cnnfast::cuda
