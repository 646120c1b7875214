#include "cuda/batch_norm_kernels.h"
#include "cuda/batch_norm_launch.cuh"
#include "cuda/launcher.cuh"

namespace cnnfast::cuda {

template <typename T>
void BatchNormKernels<T>::statistics(cudaStream_t stream, const T* input, int64_t pixel, const Layout& layout,
                                     float* workspace, float* mean, float* var) {
  Launcher launch(stream);
  run_statistics<T>(launch, input, pixel, layout, workspace, mean, var);
}

template <typename T>
void BatchNormKernels<T>::forward(cudaStream_t stream, const ForwardArgs<T>& args) {
  Launcher launch(stream);
  run_forward<T>(launch, args);
}

template <typename T>
void BatchNormKernels<T>::backward(cudaStream_t stream, const BackwardCall<T>& call) {
  Launcher launch(stream);
  run_backward<T>(launch, call);
}

template <typename T>
void BatchNormKernels<T>::accumulate(cudaStream_t stream, const ReduceArgs<T>& reduce, bool batch_statistics,
                                     float* workspace, float* grad_weight, float* grad_bias, float* factor,
                                     float* constant) {
  Launcher launch(stream);
  run_accumulate<T>(launch, reduce, batch_statistics, workspace, grad_weight, grad_bias, factor, constant);
}

template <typename T>
void BatchNormKernels<T>::terms(cudaStream_t stream, Image<T> grad, Image<const T> input,
                                const Layout& layout, const float* mean, const float* factor,
                                const float* constant) {
  Launcher launch(stream);
  run_terms<T>(launch, grad, input, layout, mean, factor, constant);
}

template struct BatchNormKernels<float>;
template struct BatchNormKernels<__half>;
template struct BatchNormKernels<__nv_bfloat16>;

}  // namespace cnnfast::cuda
