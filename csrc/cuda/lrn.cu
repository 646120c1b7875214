#include "cuda/launcher.cuh"
#include "cuda/lrn_kernels.h"
#include "cuda/lrn_launch.cuh"

namespace cnnfast::cuda {

template <typename T>
void LrnKernels<T>::forward(cudaStream_t stream, const LrnArgs<T>& args) {
  Launcher launch(stream);
  run_lrn<T>(launch, args);
}

template <typename T>
void LrnKernels<T>::backward(cudaStream_t stream, const LrnArgs<T>& args) {
  Launcher launch(stream);
  run_lrn_backward<T>(launch, args);
}

template struct LrnKernels<float>;
template struct LrnKernels<__half>;
template struct LrnKernels<__nv_bfloat16>;

}  // namespace cnnfast::cuda
