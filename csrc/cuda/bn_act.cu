#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/bn_act.cuh"
#include "cuda/bn_act_launch.h"
#include "ops/batch_norm.h"

namespace cnnfast::cuda {
namespace {

static_assert(static_cast<int>(Activation::kNone) == kActivationNone);
static_assert(static_cast<int>(Activation::kReLU) == kActivationReLU);
static_assert(static_cast<int>(Activation::kSigmoid) == kActivationSigmoid);

int processors_of_current_device() {
  int device = 0, processors = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  return processors;
}

template <typename T>
void launch(const BnActArgs<T>& args) {
  constexpr int kLanes = kVectorBytes / sizeof(T);
  const int lanes = bn_act_lanes(args);
  const int blocks = bn_act_blocks(args.size, args.channels, lanes, processors_of_current_device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (lanes == kLanes) {
    bn_act_forward<T, kLanes><<<blocks, kBlockThreads, 0, stream>>>(args);
  } else {
    bn_act_forward<T, 1><<<blocks, kBlockThreads, 0, stream>>>(args);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor in_float(const at::Tensor& per_channel) { return per_channel.to(at::kFloat).contiguous(); }

at::Tensor in_float(const OptionalTensor& per_channel) {
  return present(per_channel) ? in_float(*per_channel) : at::Tensor();
}

const float* floats(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

// T is CUDA's name of the input's type.
template <typename T>
at::Tensor forward(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                   const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                   double eps, Activation activation) {
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = at::empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  TORCH_CHECK(input.size(1) <= INT32_MAX, "cnnfast::batch_norm_act: input has ", input.size(1),
              " channels, more than ", INT32_MAX);
  // Held here until the kernel is in the stream: the allocator gives memory back in the stream's order.
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor added =
      present(residual) ? residual->contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
  const at::Tensor means = in_float(mean), vars = in_float(var), gains = in_float(weight),
                   biases = in_float(bias);
  launch(BnActArgs<T>{
      static_cast<const T*>(x.const_data_ptr()),
      added.defined() ? static_cast<const T*>(added.const_data_ptr()) : nullptr,
      static_cast<T*>(output.mutable_data_ptr()),
      floats(means),
      floats(vars),
      floats(gains),
      floats(biases),
      x.numel(),
      static_cast<int32_t>(x.size(1)),
      static_cast<int32_t>(activation.kind),
      static_cast<float>(eps),
  });
  return output;
}

at::Tensor batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, double eps, std::string_view activation) {
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  const Activation act = parse_activation("batch_norm_act", activation);
  if (act.kind > Activation::kSigmoid)  // the kernel has no other: the same formula by ATen
    return batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, activation);
  switch (input.scalar_type()) {
    case at::kFloat:
      return forward<float>(input, mean, var, weight, bias, residual, eps, act);
    case at::kHalf:
      return forward<__half>(input, mean, var, weight, bias, residual, eps, act);
    case at::kBFloat16:
      return forward<__nv_bfloat16>(input, mean, var, weight, bias, residual, eps, act);
    default:  // float64: the same formula by ATen
      return batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, activation);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) { m.impl("batch_norm_act", TORCH_FN(batch_norm_act)); }

}  // namespace cnnfast::cuda
