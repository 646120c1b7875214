#include "cuda/launcher.cuh"
#include "cuda/pool_kernels.h"
#include "cuda/pool_launch.cuh"

namespace cnnfast::cuda {

template <typename T>
void PoolKernels<T>::forward(cudaStream_t stream, PoolKind kind, const PoolCall<T>& call) {
  Launcher launch(stream);
  run_pool<T>(launch, kind, call);
}

template <typename T>
void PoolKernels<T>::backward(cudaStream_t stream, PoolKind kind, const PoolBackwardCall<T>& call) {
  Launcher launch(stream);
  run_pool_backward<T>(launch, kind, call);
}

template <typename T>
void PoolKernels<T>::global(cudaStream_t stream, Place4d<const T> input, T* output, int64_t images,
                            int64_t pixels, int64_t channels) {
  Launcher launch(stream);
  run_global_pool<T>(launch, input, output, images, pixels, channels);
}

template struct PoolKernels<float>;
template struct PoolKernels<__half>;
template struct PoolKernels<__nv_bfloat16>;

}  // namespace cnnfast::cuda
