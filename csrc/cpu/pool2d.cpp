// Pooling on the CPU: float32 and bfloat16 images through the kernel table, all else through ATen.
#include "cpu/pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/box_mean.h"
#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/narrow_pool.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
PoolCall pool_call(const at::Tensor& images, const Pool2dParams& p, at::IntArrayRef sizes) {
  const auto steps = p.steps();
  PoolCall call{};
  call.channels = images.size(1);
  call.in_height = images.size(2);
  call.in_width = images.size(3);
  call.height = sizes[2];
  call.width = sizes[3];
  call.kernel_h = p.kernel_size[0];
  call.kernel_w = p.kernel_size[1];
  call.stride_h = steps[0];
  call.stride_w = steps[1];
  call.pad_h = p.padding[0];
  call.pad_w = p.padding[1];
  call.dilation_h = p.dilation[0];
  call.dilation_w = p.dilation[1];
  call.padded_height = images.size(2) + 2 * p.padding[0];
  call.padded_width = images.size(3) + 2 * p.padding[1];
  return call;
}

namespace {

constexpr int64_t kNoDilation[2] = {1, 1};
constexpr int64_t kSerialElements = 1 << 15;

bool is_narrow(const at::Tensor& t) { return t.scalar_type() == at::kBFloat16; }

template <class Body>
void for_shares_of(int64_t rows, const at::Tensor& input, Body&& body) {
  parallel_team(input.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(rows, 1, thread, team);
    body(begin, end);
  });
}

// Rows of the images in `t`.
template <class Body>
void for_rows_of(const at::Tensor& t, Body&& body) {
  for_shares_of(t.size(0) * t.size(2), t, body);
}

// `sizes`: the output's.
PoolCall mean_call(const at::Tensor& images, const Pool2dParams& params, bool count_include_pad,
                   std::optional<int64_t> divisor_override, at::IntArrayRef sizes) {
  PoolCall call = pool_call(images, params, sizes);
  call.count_include_pad = count_include_pad;
  call.divisor_override = divisor_override.value_or(0);
  return call;
}

// bfloat16 values are compared as they are.
void max_pool16_into(const at::Tensor& input, const Pool2dParams& p, const at::Tensor& output) {
  const at::Tensor images = images_of(input);
  MaxPool16Call call{pool_call(images, p, output.sizes()), view16_of(images), view16_of(output), nullptr};
  const int64_t bytes = bf16_kernels().max_pool_scratch(call);
  for_shares_of(output.size(0) * output.size(2), input, [&](int64_t begin, int64_t end) {
    MaxPool16Call own = call;
    own.scratch = thread_scratch(ScratchSlot::kPooled, (bytes + 3) / 4);
    bf16_kernels().max_pool(own, begin, end);
  });
}

at::Tensor output_of(const at::Tensor& input, const std::vector<c10::SymInt>& sizes) {
  return output_empty(concrete(sizes), input.options(), at::MemoryFormat::ChannelsLast);
}

}  // namespace

void max_pool2d_into(const at::Tensor& input, const Pool2dParams& params, const at::Tensor& output) {
  if (output.numel() == 0) return;
  if (is_narrow(input)) return max_pool16_into(input, params, output);
  const at::Tensor images = images_of(input);
  PoolCall call = pool_call(images, params, output.sizes());
  call.input = view_of(images);
  call.output = view_of(output);
  for_shares_of(output.size(0) * output.size(2), input,
                [&](int64_t begin, int64_t end) { kernels().max_pool(call, begin, end); });
}

void avg_pool2d_into(const at::Tensor& input, const Pool2dParams& params, bool count_include_pad,
                     std::optional<int64_t> divisor_override, const at::Tensor& output) {
  if (output.numel() == 0) return;
  const at::Tensor images = images_of(input);
  PoolCall call = mean_call(images, params, count_include_pad, divisor_override, output.sizes());
  const int64_t rows = output.size(0) * output.size(2);
  if (is_narrow(input)) {
    const NarrowPool pool{call, view16_of(images), view16_of(output)};
    return for_shares_of(rows, input, [&](int64_t begin, int64_t end) { avg_pool_rows(pool, begin, end); });
  }
  call.input = view_of(images);
  call.output = view_of(output);
  for_shares_of(rows, input, [&](int64_t begin, int64_t end) { avg_pool_rows(call, begin, end); });
}

namespace {

bool served(const at::Tensor& input) {
  return input.dim() == 4 && (is_plain_float(input) || takes_widened(input));
}
bool served(const at::Tensor& grad_output, const at::Tensor& input) {
  return input.dim() == 4 && (is_narrow(input) ? takes_widened(grad_output, {input})
                                               : is_plain_float(input) && is_plain_float(grad_output));
}

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

std::vector<int64_t> gradient_sizes(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                    const Pool2dParams& params) {
  const auto sizes = concrete(check_pool2d(op, input, params));
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(sizes), "cnnfast::", op, ": grad_output has shape ",
              grad_output.sizes(), ", but the output has ", at::IntArrayRef(sizes));
  return sizes;
}

// In the layout that eager PyTorch gives it, and that compiled graphs expect.
at::Tensor input_gradient(const at::Tensor& input) {
  return gradient_empty(input.sizes(), input.options(), input.suggest_memory_format());
}

at::Tensor max_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                   at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const auto composite = [&] {
    return max_pool2d_backward_composite(grad_output, input, kernel_size, stride, padding, dilation,
                                         ceil_mode);
  };
  if (!served(grad_output, input)) return composite();
  const Pool2dParams params{kernel_size, stride, padding, dilation, ceil_mode};
  const auto sizes = gradient_sizes("max_pool2d_backward", grad_output, input, params);
  const at::Tensor grad_input = input_gradient(input);
  if (!channels_adjacent(grad_input)) return composite();
  const PoolCall call = pool_call(input, params, sizes);
  const at::Tensor grad = images_of(grad_output), images = images_of(input);
  if (is_narrow(input)) {
    const NarrowPoolBackward pool{call, view16_of(images), view16_of(grad), view16_of(grad_input)};
    for_rows_of(grad_input, [&](int64_t begin, int64_t end) { pool.run(begin, end); });
  } else {
    PoolBackwardCall pool{call, view_of(grad), view_of(grad_input)};
    pool.pool.input = view_of(images);
    for_rows_of(grad_input,
                [&](int64_t begin, int64_t end) { kernels().max_pool_backward(pool, begin, end); });
  }
  return grad_input;
}

at::Tensor avg_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                   at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                   std::optional<int64_t> divisor_override) {
  const auto composite = [&] {
    return avg_pool2d_backward_composite(grad_output, input, kernel_size, stride, padding, ceil_mode,
                                         count_include_pad, divisor_override);
  };
  if (!served(grad_output, input)) return composite();
  TORCH_CHECK(!divisor_override || *divisor_override != 0,
              "cnnfast::avg_pool2d_backward: divisor_override must not be 0");
  const Pool2dParams params{kernel_size, stride, padding, kNoDilation, ceil_mode};
  const auto sizes = gradient_sizes("avg_pool2d_backward", grad_output, input, params);
  const at::Tensor grad_input = input_gradient(input);
  if (!channels_adjacent(grad_input)) return composite();
  const PoolCall call = mean_call(grad_input, params, count_include_pad, divisor_override, sizes);
  const at::Tensor grad = images_of(grad_output);
  if (is_narrow(input)) {
    const NarrowPoolBackward pool{call, View16{}, view16_of(grad), view16_of(grad_input)};
    for_rows_of(grad_input, [&](int64_t begin, int64_t end) { avg_pool_backward_rows(pool, begin, end); });
  } else {
    const PoolBackwardCall pool{call, view_of(grad), view_of(grad_input)};
    for_rows_of(grad_input, [&](int64_t begin, int64_t end) { avg_pool_backward_rows(pool, begin, end); });
  }
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_cpu));
  m.impl("max_pool2d_backward", TORCH_FN(max_pool2d_backward_cpu));
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_cpu));
  m.impl("avg_pool2d_backward", TORCH_FN(avg_pool2d_backward_cpu));
}

}  // namespace cnnfast::cpu
