// Pooling on CUDA tensors: float32, float16 and bfloat16 images.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/pool_kernels.h"
#include "cuda/pool_tensors.h"
#include "cuda/tensors.h"
#include "ops/device_kernel.h"
#include "ops/global_avg_pool2d.h"

namespace cnnfast::cuda {
namespace {

constexpr int64_t kNoDilation[2] = {1, 1};

bool fits_32_bits(int64_t number) { return number <= INT32_MAX / 4; }

// Numbers of the window that the kernels hold; images are served.
bool served_window(const at::Tensor& input, const Pool2dParams& p, int64_t positions) {
  for (const at::IntArrayRef pair : {p.kernel_size, p.steps(), p.padding, p.dilation})
    if (!fits_32_bits(pair[0]) || !fits_32_bits(pair[1])) return false;
  const int64_t reach = std::max(p.dilation[0] * p.kernel_size[0], p.dilation[1] * p.kernel_size[1]);
  return fits_32_bits(reach) && fits_32_bits(input.size(2)) && fits_32_bits(input.size(3)) &&
         p.kernel_size[0] <= positions && p.kernel_size[0] * p.kernel_size[1] <= positions;
}

Windows windows_of(const at::Tensor& input, const Pool2dParams& p, at::IntArrayRef output) {
  const auto number = [](int64_t n) { return static_cast<int32_t>(n); };
  const auto steps = p.steps();
  return {number(input.size(2)),    number(input.size(3)),    number(output[2]),     number(output[3]),
          number(p.kernel_size[0]), number(p.kernel_size[1]), number(steps[0]),      number(steps[1]),
          number(p.padding[0]),     number(p.padding[1]),     number(p.dilation[0]), number(p.dilation[1])};
}

template <typename T>
Place4d<const T> source(const at::Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), pixel_distance(t)};
}

template <typename T>
Place4d<T> target(const at::Tensor& t) {
  return {static_cast<T*>(t.mutable_data_ptr()), pixel_distance(t)};
}

void pool_into(PoolKind kind, const at::Tensor& input, const Pool2dParams& p, bool count_include_pad,
               std::optional<int64_t> divisor_override, const Activation& activation,
               const at::Tensor& output) {
  if (output.numel() == 0) return;
  const at::Tensor x = with_pixels(input);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    PoolKernels<T>::forward(
        current_stream(), kind,
        {source<T>(x), target<T>(output), x.size(0), x.size(1), windows_of(x, p, output.sizes()),
         count_include_pad, static_cast<int32_t>(divisor_override.value_or(0)), activation});
  });
}

std::vector<int64_t> plain(const std::vector<c10::SymInt>& sizes) {
  std::vector<int64_t> result;
  for (const auto& size : sizes) result.push_back(size.expect_int());
  return result;
}

// The kernels count the output's pixels in 32 bits as well.
bool served_output(at::IntArrayRef sizes) { return sizes[0] * sizes[2] * sizes[3] <= kMostPixels; }

}  // namespace

void max_pool2d_into(const at::Tensor& input, const Pool2dParams& params, const Activation& activation,
                     const at::Tensor& output) {
  pool_into(PoolKind::kMax, input, params, false, std::nullopt, activation, output);
}

void avg_pool2d_into(const at::Tensor& input, const Pool2dParams& params, bool count_include_pad,
                     std::optional<int64_t> divisor_override, const Activation& activation,
                     const at::Tensor& output) {
  pool_into(PoolKind::kAvg, input, params, count_include_pad, divisor_override, activation, output);
}

namespace {

at::Tensor max_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Pool2dParams params{kernel_size, stride, padding, dilation, ceil_mode};
  const auto sizes = plain(check_pool2d("max_pool2d", input, params));
  if (!served(input) || !served_window(input, params, INT32_MAX / 4) || !served_output(sizes))
    throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images(sizes, input);
  max_pool2d_into(input, params, {}, output);
  return output;
}

at::Tensor avg_pool2d(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                      std::optional<int64_t> divisor_override) {
  const Pool2dParams params{kernel_size, stride, padding, kNoDilation, ceil_mode};
  const auto sizes = plain(check_pool2d("avg_pool2d", input, params));
  TORCH_CHECK(!divisor_override || *divisor_override != 0,
              "cnnfast::avg_pool2d: divisor_override must not be 0");
  if (!served(input) || !served_window(input, params, INT32_MAX / 4) || !served_output(sizes) ||
      std::abs(divisor_override.value_or(0)) > INT32_MAX)
    throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images(sizes, input);
  avg_pool2d_into(input, params, count_include_pad, divisor_override, {}, output);
  return output;
}

at::Tensor pool_backward(PoolKind kind, const at::Tensor& grad_output, const at::Tensor& input,
                         const Pool2dParams& params, bool count_include_pad,
                         std::optional<int64_t> divisor_override) {
  const char* op = kind == PoolKind::kMax ? "max_pool2d_backward" : "avg_pool2d_backward";
  const auto sizes = plain(check_pool2d(op, input, params));
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(sizes), "cnnfast::", op, ": grad_output has shape ",
              grad_output.sizes(), ", but the output has ", at::IntArrayRef(sizes));
  const int64_t positions = kind == PoolKind::kMax ? kMostPositions : INT32_MAX / 4;
  if (!served(input) || !served_with(input, grad_output) || !served_window(input, params, positions) ||
      !served_output(sizes) || std::abs(divisor_override.value_or(0)) > INT32_MAX)
    throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  // The layout that eager PyTorch gives it, and that compiled graphs expect.
  at::Tensor grad_input = at::empty(input.sizes(), input.options(), input.suggest_memory_format());
  if (grad_input.numel() == 0) return grad_input;
  if (!pixel_distance(grad_input)) throw Unserved();
  const at::Tensor grad = with_pixels(grad_output), x = with_pixels(input);
  const bool is_max = kind == PoolKind::kMax;
  const at::Tensor winners = at::empty({is_max ? grad.numel() : 0}, grad.options().dtype(at::kByte));
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    PoolKernels<T>::backward(current_stream(), kind,
                             {source<T>(grad), is_max ? source<T>(x) : Place4d<const T>{},
                              target<T>(grad_input), is_max ? winners.mutable_data_ptr<uint8_t>() : nullptr,
                              x.size(0), x.size(1), windows_of(x, params, sizes), count_include_pad,
                              static_cast<int32_t>(divisor_override.value_or(0))});
  });
  return grad_input;
}

at::Tensor max_pool2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                               at::IntArrayRef dilation, bool ceil_mode) {
  return pool_backward(PoolKind::kMax, grad_output, input,
                       {kernel_size, stride, padding, dilation, ceil_mode}, false, std::nullopt);
}

at::Tensor avg_pool2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                               bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override) {
  return pool_backward(PoolKind::kAvg, grad_output, input,
                       {kernel_size, stride, padding, kNoDilation, ceil_mode}, count_include_pad,
                       divisor_override);
}

at::Tensor global_avg_pool2d(const at::Tensor& input) {
  check_global_avg_pool2d(input);
  if (!served(input)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images({input.size(0), input.size(1), 1, 1}, input);
  if (output.numel() == 0) return output;
  const at::Tensor x = with_pixels(input);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    PoolKernels<T>::global(current_stream(), source<T>(x), static_cast<T*>(output.mutable_data_ptr()),
                           x.size(0), x.size(2) * x.size(3), x.size(1));
  });
  return output;
}

[[maybe_unused]] const bool registered[] = {
    DeviceKernel<max_pool2d_composite>::set(max_pool2d),
    DeviceKernel<max_pool2d_backward_composite>::set(max_pool2d_backward),
    DeviceKernel<avg_pool2d_composite>::set(avg_pool2d),
    DeviceKernel<avg_pool2d_backward_composite>::set(avg_pool2d_backward),
    DeviceKernel<global_avg_pool2d_composite>::set(global_avg_pool2d)};

}  // namespace
}  // namespace cnnfast::cuda
