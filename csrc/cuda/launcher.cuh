// launch(kernel, grid, arguments) on the device: in the stream given, with the launch checked.
#pragma once
#include <c10/cuda/CUDAException.h>

#include "cuda/access.cuh"

namespace cnnfast::cuda {

class Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : stream_(stream) {}

  template <typename Args>
  void operator()(void (*kernel)(Args), dim3 grid, const Args& args) {
    kernel<<<grid, kBlockThreads, 0, stream_>>>(args);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  cudaStream_t stream_;
};

}  // namespace cnnfast::cuda
