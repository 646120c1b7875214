// conv2d_batch_norm on CUDA tensors. Triton's convolution gives the statistics of what it stores, which saves
// the pass that reads it for them.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gpu/conv2d_triton.h"
#include "gpu/norms.h"
#include "gpu/statistics_triton.h"
#include "gpu/triton/table.h"
#include "ops/batch_norm.h"

namespace cnnfast::gpu {
namespace {

struct Call {
  const ConvBatchNormArgs& args;
  std::vector<int64_t> output_sizes;
};

struct StatisticsConv2d {
  Kernel conv;
  StatisticsKernels join;
};

struct Convolved {
  at::Tensor conv, mean, var;
};

std::string key_of(const char* op, const ConvBatchNormArgs& a) {
  Key key(op, a.input);
  key.add(a.input).add(a.weight).add(a.bias).add(a.bn_weight).add(a.bn_bias).add(a.residual);
  key.add(a.params.stride).add(a.params.padding).add(a.params.dilation).add(a.params.groups);
  return key.add(a.activation).text();
}

// Without the bias, which the mean takes away again.
Conv2dArgs bare(const ConvBatchNormArgs& a) {
  static const OptionalTensor none;
  return {a.input, a.weight, none, none, none, a.params, "none"};
}

std::vector<StatisticsConv2d> find(const Call& call, std::string* reason) {
  StatisticsKernels join;
  std::vector<StatisticsConv2d> found;
  if (!find_statistics_kernels(call.args.input, &join, reason)) return found;
  const Conv2dArgs conv = bare(call.args);
  for (const Kernel& kernel : find_triton_conv2d({conv, nullptr, true}, call.output_sizes, reason))
    found.push_back({kernel, join});
  return found;
}

Convolved convolve(const StatisticsConv2d& kernels, const Call& call) {
  const Conv2dArgs conv = bare(call.args);
  const at::Tensor output =
      at::empty(call.output_sizes, conv.input.options(), at::MemoryFormat::ChannelsLast);
  const auto parts = run_triton_conv2d(kernels.conv, {conv, nullptr, true}, output);
  TORCH_INTERNAL_ASSERT(parts);
  const auto [mean, var] = join_parts(kernels.join, *parts);
  return {output, mean, var};
}

bool is_plain(bool has_cuda, const at::Tensor& input) {
  const bool nothing_to_choose = table().count == 0 && !has_cuda && forced_backend().empty();
  return nothing_to_choose || forced_backend() == "aten" || input.numel() == 0;
}

// What Triton's convolutions lead to, added to the other backends.
template <class Result, class Run>
void add_triton(const Call& call, Backends<Call, Result>& backends, Run run) {
  std::string reason;
  const auto found = find(call, &reason);
  for (const StatisticsConv2d& kernels : found)
    backends.push_back({"triton/" + std::string(kernels.conv.variant->name), "",
                        [kernels, run](const Call& c) -> Result { return run(convolve(kernels, c), c); }});
  if (found.empty()) backends.push_back({"triton", reason, nullptr});
}

template <class Function>
BatchNormOutputs run(Function function, const Call& call) {
  const ConvBatchNormArgs& a = call.args;
  return function(a.input, a.weight, a.bias, a.bn_weight, a.bn_bias, a.residual, a.params.stride,
                  a.params.padding, a.params.dilation, a.params.groups, a.eps, a.activation);
}

BatchNormOutputs normalise(const Convolved& c, const Call& call) {
  const ConvBatchNormArgs& a = call.args;
  const at::Tensor output =
      BatchNormAct::run(c.conv, c.mean, c.var, a.bn_weight, a.bn_bias, a.residual, a.eps, a.activation);
  return {output, c.conv, present(a.bias) ? c.mean + as_type(*a.bias, at::kFloat) : c.mean, c.var};
}

BatchNormOutputs conv2d_batch_norm(const at::Tensor& input, const at::Tensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                   const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                   int64_t groups, double eps, std::string_view activation) {
  const ConvBatchNormArgs args{
      input, weight,    bias, bn_weight, bn_bias, residual, {stride, padding, dilation, groups},
      eps,   activation};
  const Call call{args, C10_AS_INTARRAYREF_SLOW(check_conv2d_batch_norm(args)).vec()};
  const auto kernels = DeviceKernel<conv2d_batch_norm_composite>::get();
  if (is_plain(kernels, input)) return run(conv2d_batch_norm_composite, call);
  constexpr const char* op = "conv2d_batch_norm";
  return run_chosen<Call, BatchNormOutputs>(op, key_of(op, args), input.device(), call, [&] {
    Backends<Call, BatchNormOutputs> found{
        {"cuda", why_no_cuda(kernels), [kernels](const Call& c) { return run(kernels, c); }},
        {"aten", "", [](const Call& c) { return run(conv2d_batch_norm_composite, c); }}};
    add_triton(call, found, normalise);
    return found;
  });
}

// ---- with bits of ReLU

template <class Function>
ConvBatchNormReluOutputs run_relu(Function function, const Call& call) {
  const ConvBatchNormArgs& a = call.args;
  return function(a.input, a.weight, a.bn_weight, a.bn_bias, a.residual, a.params.stride, a.params.padding,
                  a.params.dilation, a.params.groups, a.eps);
}

ConvBatchNormReluOutputs normalise_relu(const Convolved& c, const Call& call) {
  const ConvBatchNormArgs& a = call.args;
  const auto [output, positive] =
      BatchNormActBits::run(c.conv, c.mean, c.var, a.bn_weight, a.bn_bias, a.residual, a.eps);
  return {output, c.conv, c.mean, c.var, positive};
}

ConvBatchNormReluOutputs conv2d_batch_norm_relu(const at::Tensor& input, const at::Tensor& weight,
                                                const OptionalTensor& bn_weight,
                                                const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                                at::IntArrayRef stride, at::IntArrayRef padding,
                                                at::IntArrayRef dilation, int64_t groups, double eps) {
  const OptionalTensor none;
  const ConvBatchNormArgs args{
      input, weight, none, bn_weight, bn_bias, residual, {stride, padding, dilation, groups}, eps, "relu"};
  const Call call{args, C10_AS_INTARRAYREF_SLOW(check_conv2d_batch_norm(args)).vec()};
  const bool built = DeviceKernel<batch_norm2d_relu_composite>::get() != nullptr;
  if (is_plain(built, input)) return run_relu(conv2d_batch_norm_relu_composite, call);
  constexpr const char* op = "conv2d_batch_norm_relu";
  return run_chosen<Call, ConvBatchNormReluOutputs>(op, key_of(op, args), input.device(), call, [&] {
    // "cuda": a convolution by its own choice, and the kernels behind it.
    Backends<Call, ConvBatchNormReluOutputs> found{
        {"cuda", why_no_cuda(built),
         [](const Call& c) { return run_relu(conv2d_batch_norm_relu_by_two, c); }},
        {"aten", "", [](const Call& c) { return run_relu(conv2d_batch_norm_relu_composite, c); }}};
    add_triton(call, found, normalise_relu);
    return found;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) {
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm));
  m.impl("conv2d_batch_norm_relu", TORCH_FN(conv2d_batch_norm_relu));
}

}  // namespace cnnfast::gpu
