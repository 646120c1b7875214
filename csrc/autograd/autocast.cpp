// Autocast: convolutions and linear layers run in the autocast type as torch's own do; pooling takes what it
// is given.
#include <ATen/autocast_mode.h>

#include "autograd/common.h"
#include "ops/batch_norm.h"
#include "ops/dense_block.h"
#include "ops/inception.h"
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

  static std::vector<at::Tensor> cast(at::TensorList list) {
    std::vector<at::Tensor> result;
    for (const auto& t : list) result.push_back(cast(t));
    return result;
  }
  static OptionalTensors cast(const OptionalTensors& list) {
    OptionalTensors result;
    for (size_t i = 0; i < list.size(); ++i) result.push_back(cast(list.get(i)));
    return result;
  }

  static std::vector<at::Tensor> inception(const at::Tensor& input, at::TensorList weights,
                                           const OptionalTensors& biases, at::IntArrayRef branches) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(inception_composite)>("cnnfast::inception");
    return op.call(cast(input), cast(weights), cast(biases), branches);
  }

  // Batch norm's own parameters and averages stay as they are.
  static DenseBlockOutputs dense_block(const at::Tensor& input, at::TensorList weights,
                                       const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                       const OptionalTensors& bn_biases, const OptionalTensors& means,
                                       const OptionalTensors& vars, double eps, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(dense_block_composite)>("cnnfast::dense_block");
    return op.call(cast(input), cast(weights), cast(biases), bn_weights, bn_biases, means, vars, eps,
                   activation);
  }

  static void implement(torch::Library& m) {
    m.impl("conv2d", TORCH_FN(conv2d));
    m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm));
    m.impl("linear", TORCH_FN(linear));
    m.impl("inception", TORCH_FN(inception));
    m.impl("dense_block", TORCH_FN(dense_block));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, AutocastCPU, m) { Autocast<c10::DeviceType::CPU>::implement(m); }
TORCH_LIBRARY_IMPL(cnnfast, AutocastCUDA, m) { Autocast<c10::DeviceType::CUDA>::implement(m); }

}  // namespace cnnfast
