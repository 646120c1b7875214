// What pool.cu offers to the tensor side: the sequences of pool_launch.cuh in a stream.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/pool_args.h"

namespace cnnfast::cuda {

// T: float, __half, __nv_bfloat16.
template <typename T>
struct PoolKernels {
  static void forward(cudaStream_t stream, PoolKind kind, const PoolCall<T>& call);
  static void backward(cudaStream_t stream, PoolKind kind, const PoolBackwardCall<T>& call);
  static void global(cudaStream_t stream, Place4d<const T> input, T* output, int64_t images, int64_t pixels,
                     int64_t channels);
};

}  // namespace cnnfast::cuda
