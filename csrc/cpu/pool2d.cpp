// Pooling on the CPU: float32 images through the kernel table, all else through ATen.
#include "cpu/pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kNoDilation[2] = {1, 1};
constexpr int64_t kSerialElements = 1 << 15;

using PoolKernel = void (*)(const PoolCall&, int64_t, int64_t);

void pool_into(const at::Tensor& input, const Pool2dParams& p, bool count_include_pad,
               int64_t divisor_override, PoolKernel kernel, const at::Tensor& output) {
  if (output.numel() == 0) return;
  const at::Tensor images =
      channels_adjacent(input) ? input : input.contiguous(at::MemoryFormat::ChannelsLast);
  const auto steps = p.steps();
  const PoolCall call{view_of(images),
                      view_of(output),
                      input.size(1),
                      input.size(2),
                      input.size(3),
                      output.size(2),
                      output.size(3),
                      p.kernel_size[0],
                      p.kernel_size[1],
                      steps[0],
                      steps[1],
                      p.padding[0],
                      p.padding[1],
                      p.dilation[0],
                      p.dilation[1],
                      count_include_pad,
                      divisor_override,
                      input.size(2) + 2 * p.padding[0],
                      input.size(3) + 2 * p.padding[1]};
  const int64_t rows = output.size(0) * output.size(2);
  parallel_team(input.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(rows, 1, thread, team);
    kernel(call, begin, end);
  });
}

at::Tensor output_of(const at::Tensor& input, const std::vector<c10::SymInt>& sizes) {
  return at::empty(concrete(sizes), input.options(), at::MemoryFormat::ChannelsLast);
}

}  // namespace

void max_pool2d_into(const at::Tensor& input, const Pool2dParams& params, const at::Tensor& output) {
  pool_into(input, params, false, 0, kernels().max_pool, output);
}

void avg_pool2d_into(const at::Tensor& input, const Pool2dParams& params, bool count_include_pad,
                     std::optional<int64_t> divisor_override, const at::Tensor& output) {
  pool_into(input, params, count_include_pad, divisor_override.value_or(0), kernels().avg_pool, output);
}

namespace {

bool served(const at::Tensor& input) { return is_plain_float(input) && input.dim() == 4; }

at::Tensor max_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  if (!served(input)) return max_pool2d_composite(input, kernel_size, stride, padding, dilation, ceil_mode);
  const Pool2dParams params{kernel_size, stride, padding, dilation, ceil_mode};
  const at::Tensor output = output_of(input, check_pool2d("max_pool2d", input, params));
  max_pool2d_into(input, params, output);
  return output;
}

at::Tensor avg_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  if (!served(input))
    return avg_pool2d_composite(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                divisor_override);
  TORCH_CHECK(!divisor_override || *divisor_override != 0,
              "cnnfast::avg_pool2d: divisor_override must not be 0");
  const Pool2dParams params{kernel_size, stride, padding, kNoDilation, ceil_mode};
  const at::Tensor output = output_of(input, check_pool2d("avg_pool2d", input, params));
  avg_pool2d_into(input, params, count_include_pad, divisor_override, output);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_cpu));
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_cpu));
}

}  // namespace cnnfast::cpu
