// bn_act_conv2d on CUDA tensors. Triton's convolution normalises what it loads: the activated input, which
// the others write and read again, is never in memory.
#include "ops/bn_act_conv2d.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>

#include "gpu/conv2d_triton.h"
#include "gpu/norms.h"
#include "gpu/triton/table.h"
#include "ops/slice_conv.h"

namespace cnnfast::gpu {
namespace {

constexpr const char* kOp = "bn_act_conv2d";
using Kernels = DeviceKernel<bn_act_conv2d_composite>;

// `slice`: where the result is to go; a backend that cannot write there gives nothing.
struct Call {
  const BnActConv2dArgs& args;
  double eps;
  std::vector<int64_t> output_sizes;
  const at::Tensor* slice = nullptr;
};

template <class Function>
BatchNorm2dOutputs run(Function function, const Call& call) {
  if (call.slice) return {};
  const BnActConv2dArgs& a = call.args;
  const Conv2dParams& p = a.params;
  return function(a.input, a.weight, a.bias, a.bn_weight, a.bn_bias, a.mean, a.var, a.residual, p.stride,
                  p.padding, p.dilation, p.groups, call.eps, a.pre_activation);
}

std::string key_of(const BnActConv2dArgs& a) {
  Key key(kOp, a.input);
  key.add(a.input).add(a.weight).add(a.bias).add(a.bn_weight).add(a.bn_bias).add(a.mean).add(a.residual);
  key.add(a.params.stride).add(a.params.padding).add(a.params.dilation).add(a.params.groups);
  return key.add(a.pre_activation).text();
}

Conv2dArgs convolution_of(const BnActConv2dArgs& a) {
  static const OptionalTensor none;
  return {a.input, a.weight, a.bias, none, a.residual, a.params, "none"};
}

// From statistics and parameters to the two numbers per channel that the kernel multiplies and adds.
Prologue prologue_of(const BnActConv2dArgs& a, const at::Tensor& mean, const at::Tensor& var, double eps) {
  at::Tensor scale = at::rsqrt(as_type(var, at::kFloat) + eps);
  if (present(a.bn_weight)) scale = scale * as_type(*a.bn_weight, at::kFloat);
  at::Tensor shift = -as_type(mean, at::kFloat) * scale;
  if (present(a.bn_bias)) shift = shift + as_type(*a.bn_bias, at::kFloat);
  return {scale.contiguous(), shift.contiguous(), a.pre_activation == "relu"};
}

BatchNorm2dOutputs run(const Kernel& kernel, const Call& c) {
  const BnActConv2dArgs& a = c.args;
  const bool given = present(a.mean);
  const auto [mean, var] = given ? std::tuple(*a.mean, *a.var) : BatchStatistics::run(a.input);
  const at::Tensor output =
      c.slice ? *c.slice : at::empty(c.output_sizes, a.input.options(), at::MemoryFormat::ChannelsLast);
  const Prologue prologue = prologue_of(a, mean, var, c.eps);
  const Conv2dArgs conv = convolution_of(a);
  const bool written = run_triton_conv2d(kernel, {conv, &prologue}, output).has_value();
  TORCH_INTERNAL_ASSERT(written || c.slice);
  if (!written) return {};
  if (given) return {output, no_gradient(mean), no_gradient(var)};
  return {output, mean, var};
}

std::vector<Kernel> find(const Call& c, std::string* reason) {
  const std::string_view activation = c.args.pre_activation;
  if (activation != "relu" && activation != "none") {
    *reason = "Triton kernels have no pre-activation " + std::string(activation);
    return {};
  }
  const Prologue prologue{{}, {}, activation == "relu"};
  const Conv2dArgs conv = convolution_of(c.args);
  return find_triton_conv2d({conv, &prologue}, c.output_sizes, reason);
}

Backends<Call, BatchNorm2dOutputs> backends(const Call& call) {
  const auto kernels = Kernels::get();
  Backends<Call, BatchNorm2dOutputs> found{
      {"cuda", why_no_cuda(kernels), [kernels](const Call& c) { return run(kernels, c); }},
      {"aten", "", [](const Call& c) { return run(bn_act_conv2d_composite, c); }}};
  std::string reason;
  const auto triton = find(call, &reason);
  for (const Kernel& kernel : triton)
    found.push_back({"triton/" + std::string(kernel.variant->name), "",
                     [kernel](const Call& c) { return run(kernel, c); }});
  if (triton.empty()) found.push_back({"triton", reason, nullptr});
  return found;
}

bool is_plain(const at::Tensor& input) {
  const bool nothing_to_choose = table().count == 0 && !Kernels::get() && forced_backend().empty();
  return nothing_to_choose || forced_backend() == "aten" || input.numel() == 0;
}

BatchNorm2dOutputs chosen(const std::string& key, const Call& call) {
  return run_chosen<Call, BatchNorm2dOutputs>(kOp, key, call.args.input.device(), call,
                                              [&] { return backends(call); });
}

BatchNorm2dOutputs bn_act_conv2d(const at::Tensor& input, const at::Tensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                 const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                 const OptionalTensor& var, const OptionalTensor& residual,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, double eps, std::string_view pre_activation) {
  const BnActConv2dArgs args{input,         weight,   bias,
                             bn_weight,     bn_bias,  mean,
                             var,           residual, {stride, padding, dilation, groups},
                             pre_activation};
  const Call call{args, eps, C10_AS_INTARRAYREF_SLOW(check_bn_act_conv2d(args)).vec()};
  if (is_plain(input)) return run(bn_act_conv2d_composite, call);
  return chosen(key_of(args), call);
}

// A layer of a dense block that reads the channels so far and writes its own behind them.
bool bn_act_conv2d_into_slice(const BnActConv2dArgs& args, double eps, const at::Tensor& output) {
  if (is_plain(args.input) || table().count == 0) return false;
  Call call{args, eps, C10_AS_INTARRAYREF_SLOW(check_bn_act_conv2d(args)).vec()};
  const std::string key = key_of(args);
  if (!is_settled<Call, BatchNorm2dOutputs>(key) && may_measure(args.input.device())) chosen(key, call);
  call.slice = &output;
  return std::get<0>(chosen(key, call)).defined();
}

[[maybe_unused]] const bool registered = (slice_convs().bn_act_conv2d = bn_act_conv2d_into_slice, true);

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) { m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d)); }

}  // namespace cnnfast::gpu
