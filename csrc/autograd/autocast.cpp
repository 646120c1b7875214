// Autocast: convolutions and linear layers run in the autocast type as torch's own do; pooling takes what it
// is given.
#include <ATen/autocast_mode.h>

#include "autograd/common.h"
#include "ops/batch_norm.h"
#include "ops/linear.h"

namespace cnnfast {
namespace {

template <c10::DeviceType device>
struct Autocast {
  static constexpr c10::DispatchKey kKey =
      device == c10::DeviceType::CPU ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;

  static at::Tensor cast(const at::Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  }
  static OptionalTensor cast(const OptionalTensor& t) { return present(t) ? OptionalTensor(cast(*t)) : t; }

  static at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& scale, const OptionalTensor& residual,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                           int64_t groups, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(conv2d_composite)>("cnnfast::conv2d");
    return op.call(cast(input), cast(weight), cast(bias), cast(scale), cast(residual), stride, padding,
                   dilation, groups, activation);
  }

  // Batch norm's own parameters stay as they are, like torch's.
  static BatchNormOutputs conv2d_batch_norm(const at::Tensor& input, const at::Tensor& weight,
                                            const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                            const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                            at::IntArrayRef stride, at::IntArrayRef padding,
                                            at::IntArrayRef dilation, int64_t groups, double eps,
                                            std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(conv2d_batch_norm_composite)>("cnnfast::conv2d_batch_norm");
    return op.call(cast(input), cast(weight), cast(bias), bn_weight, bn_bias, cast(residual), stride, padding,
                   dilation, groups, eps, activation);
  }

  static at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(linear_composite)>("cnnfast::linear");
    return op.call(cast(input), cast(weight), cast(bias), activation);
  }

  static void implement(torch::Library& m) {
    m.impl("conv2d", TORCH_FN(conv2d));
    m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm));
    m.impl("linear", TORCH_FN(linear));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, AutocastCPU, m) { Autocast<c10::DeviceType::CPU>::implement(m); }
TORCH_LIBRARY_IMPL(cnnfast, AutocastCUDA, m) { Autocast<c10::DeviceType::CUDA>::implement(m); }

}  // namespace cnnfast
