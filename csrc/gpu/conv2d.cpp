// conv2d on CUDA tensors: whichever backend serves the shape, the fastest of those measured.
#include "ops/conv2d.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gpu/backends.h"
#include "gpu/conv2d_triton.h"
#include "gpu/key.h"
#include "gpu/triton/table.h"
#include "ops/slice_conv.h"

namespace cnnfast::gpu {
namespace {

using Kernels = DeviceKernel<conv2d_composite>;

// `slice`: where the result is to go; a backend that cannot write there gives nothing.
struct Call {
  const Conv2dArgs& args;
  std::vector<int64_t> output_sizes;
  const at::Tensor* slice = nullptr;
};

template <class Function>
at::Tensor run(Function function, const Call& call) {
  if (call.slice) return {};
  const Conv2dArgs& a = call.args;
  return function(a.input, a.weight, a.bias, a.scale, a.residual, a.params.stride, a.params.padding,
                  a.params.dilation, a.params.groups, a.activation);
}

at::Tensor run(const Kernel& kernel, const Call& c) {
  const at::Tensor output =
      c.slice ? *c.slice : at::empty(c.output_sizes, c.args.input.options(), at::MemoryFormat::ChannelsLast);
  const bool written = run_triton_conv2d(kernel, {c.args}, output).has_value();
  TORCH_INTERNAL_ASSERT(written || c.slice);
  return written ? output : at::Tensor();
}

std::string key_of(const Conv2dArgs& a) {
  Key key("conv2d", a.input);
  key.add(a.input).add(a.weight).add(a.bias).add(a.scale).add(a.residual);
  key.add(a.params.stride).add(a.params.padding).add(a.params.dilation).add(a.params.groups);
  return key.add(a.activation).text();
}

// In the order of preference where nothing is measured: one pass behind ATen's convolution, ATen alone,
// Triton's kernels.
Backends<Call, at::Tensor> backends(const Call& call) {
  const auto kernels = Kernels::get();
  Backends<Call, at::Tensor> found{
      {"cuda", why_no_cuda(kernels), [kernels](const Call& c) { return run(kernels, c); }},
      {"aten", "", [](const Call& c) { return run(conv2d_composite, c); }}};
  std::string reason;
  const auto triton = find_triton_conv2d({call.args}, call.output_sizes, &reason);
  for (const Kernel& kernel : triton)
    found.push_back({"triton/" + std::string(kernel.variant->name), "",
                     [kernel](const Call& c) { return run(kernel, c); }});
  if (triton.empty()) found.push_back({"triton", reason, nullptr});
  return found;
}

bool is_plain(const Conv2dArgs& args) {
  const bool nothing_to_choose = table().count == 0 && !Kernels::get() && forced_backend().empty();
  return nothing_to_choose || forced_backend() == "aten" || args.input.numel() == 0;
}

at::Tensor conv2d_gpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& residual, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::string_view activation) {
  const Conv2dArgs args{input,     weight, bias, scale, residual, {stride, padding, dilation, groups},
                        activation};
  const Call call{args, C10_AS_INTARRAYREF_SLOW(check_conv2d("conv2d", args)).vec()};
  if (is_plain(args)) return run(conv2d_composite, call);
  return run_chosen<Call, at::Tensor>("conv2d", key_of(args), input.device(), call,
                                      [&] { return backends(call); });
}

// A convolution that writes its slice of a concatenation: by Triton where the choice for a tensor of its own
// is Triton's.
bool conv2d_into_slice(const Conv2dArgs& args, const at::Tensor& output) {
  if (is_plain(args) || table().count == 0) return false;
  Call call{args, C10_AS_INTARRAYREF_SLOW(check_conv2d("conv2d", args)).vec()};
  const std::string key = key_of(args);
  const auto chosen = [&] {
    return run_chosen<Call, at::Tensor>("conv2d", key, args.input.device(), call,
                                        [&] { return backends(call); });
  };
  if (!is_settled<Call, at::Tensor>(key) && may_measure(args.input.device())) chosen();
  call.slice = &output;
  return chosen().defined();
}

[[maybe_unused]] const bool registered = (slice_convs().conv2d = conv2d_into_slice, true);

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) { m.impl("conv2d", TORCH_FN(conv2d_gpu)); }

}  // namespace cnnfast::gpu
