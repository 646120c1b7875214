// Pooling on the CPU: float32 images through the kernel table, all else through ATen.
#include "ops/pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kNoDilation[2] = {1, 1};
constexpr int64_t kSerialElements = 1 << 15;

using PoolKernel = void (*)(const PoolCall&, int64_t, int64_t);

at::Tensor pool_float(const at::Tensor& input, const Pool2dParams& p,
                      const std::vector<c10::SymInt>& symbolic_sizes, bool count_include_pad,
                      int64_t divisor_override, PoolKernel kernel) {
  std::vector<int64_t> sizes;
  for (const auto& size : symbolic_sizes) sizes.push_back(size.expect_int());
  const at::Tensor output = at::empty(sizes, input.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const at::Tensor images =
      channels_adjacent(input) ? input : input.contiguous(at::MemoryFormat::ChannelsLast);
  const auto steps = p.steps();
  const PoolCall call{view_of(images),
                      view_of(output),
                      input.size(1),
                      input.size(2),
                      input.size(3),
                      sizes[2],
                      sizes[3],
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
  parallel_team(input.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(sizes[0] * sizes[2], 1, thread, team);
    kernel(call, begin, end);
  });
  return output;
}

bool served(const at::Tensor& input) { return is_plain_float(input) && input.dim() == 4; }

at::Tensor max_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  if (!served(input)) return max_pool2d_composite(input, kernel_size, stride, padding, dilation, ceil_mode);
  const Pool2dParams params{kernel_size, stride, padding, dilation, ceil_mode};
  return pool_float(input, params, check_pool2d("max_pool2d", input, params), false, 0, kernels().max_pool);
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
  return pool_float(input, params, check_pool2d("avg_pool2d", input, params), count_include_pad,
                    divisor_override.value_or(0), kernels().avg_pool);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_cpu));
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_cpu));
}

}  // namespace cnnfast::cpu
