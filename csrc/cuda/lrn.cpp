// local_response_norm on CUDA tensors: float32, float16 and bfloat16.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/lrn_kernels.h"
#include "cuda/tensors.h"
#include "ops/device_kernel.h"
#include "ops/local_response_norm.h"

namespace cnnfast::cuda {
namespace {

// Pixels that follow one another: the kernels take the batch as one stretch of values.
at::Tensor dense(const at::Tensor& images) { return images.contiguous(at::MemoryFormat::ChannelsLast); }

template <typename T>
const T* source(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

at::Tensor run(const at::Tensor& input, const at::Tensor& grad_output, int64_t size, double alpha,
               double beta, double k) {
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images(input.sizes(), input);
  if (output.numel() == 0) return output;
  const at::Tensor x = dense(input), grad = grad_output.defined() ? dense(grad_output) : at::Tensor();
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const LrnArgs<T> args =
        lrn_args<T>(source<T>(x), source<T>(grad), static_cast<T*>(output.mutable_data_ptr()), x.numel(),
                    x.size(1), size, alpha, beta, k);
    grad.defined() ? LrnKernels<T>::backward(current_stream(), args)
                   : LrnKernels<T>::forward(current_stream(), args);
  });
  return output;
}

at::Tensor local_response_norm(const at::Tensor& input, int64_t size, double alpha, double beta, double k) {
  check_local_response_norm(input, size);
  if (!served(input) || !lrn_fits(size)) throw Unserved();
  return run(input, {}, size, alpha, beta, k);
}

at::Tensor local_response_norm_backward(const at::Tensor& grad_output, const at::Tensor& input, int64_t size,
                                        double alpha, double beta, double k) {
  check_local_response_norm(input, size);
  if (!served(input) || !served_with(input, grad_output) || !lrn_fits(size)) throw Unserved();
  TORCH_CHECK(grad_output.sizes() == input.sizes(),
              "cnnfast::local_response_norm_backward: grad_output has shape ", grad_output.sizes(),
              ", but input has ", input.sizes());
  return run(input, grad_output, size, alpha, beta, k);
}

[[maybe_unused]] const bool registered[] = {
    DeviceKernel<local_response_norm_composite>::set(local_response_norm),
    DeviceKernel<local_response_norm_backward_composite>::set(local_response_norm_backward)};

}  // namespace
}  // namespace cnnfast::cuda
