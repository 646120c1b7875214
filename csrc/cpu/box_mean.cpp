#include "cpu/box_mean.h"

#include <optional>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/dispatch.h"

namespace cnnfast::cpu {
namespace {

// Along one side: the window of an output position, or the output positions whose windows reach an input's.
BoxAxis forward(int64_t size, int64_t result, int64_t kernel, int64_t stride, int64_t pad) {
  return {size, result, stride, -pad, kernel - 1 - pad, 1};
}
BoxAxis backward(int64_t size, int64_t result, int64_t kernel, int64_t stride, int64_t pad) {
  return {size, result, 1, pad + 1 - kernel, pad, stride};
}

// Padding counts or there is none, and no window reaches beyond what counts.
bool divides_alike(const PoolCall& p) {
  if (p.divisor_override) return true;
  if (!p.count_include_pad && (p.pad_h != 0 || p.pad_w != 0)) return false;
  const int64_t height = p.count_include_pad ? p.padded_height : p.in_height,
                width = p.count_include_pad ? p.padded_width : p.in_width;
  return (p.height - 1) * p.stride_h + p.kernel_h <= height &&
         (p.width - 1) * p.stride_w + p.kernel_w <= width;
}

bool fits(const PoolCall& p) {
  return (p.kernel_w + p.stride_w) * p.channels <= kBoxValues / 4 && p.in_width <= kBoxColumns &&
         p.width <= kBoxColumns;
}

float divisor_of(const PoolCall& p) {
  return static_cast<float>(p.divisor_override ? p.divisor_override : p.kernel_h * p.kernel_w);
}

std::optional<BoxMean> box_mean_of(const PoolCall& p) {
  if (p.prologue.scale || !divides_alike(p) || !fits(p)) return {};
  return BoxMean{p.channels, forward(p.in_height, p.height, p.kernel_h, p.stride_h, p.pad_h),
                 forward(p.in_width, p.width, p.kernel_w, p.stride_w, p.pad_w), divisor_of(p)};
}

std::optional<BoxMean> gradient_of(const PoolCall& p) {
  if (!divides_alike(p) || !fits(p)) return {};
  return BoxMean{p.channels, backward(p.height, p.in_height, p.kernel_h, p.stride_h, p.pad_h),
                 backward(p.width, p.in_width, p.kernel_w, p.stride_w, p.pad_w), divisor_of(p)};
}

// Whether it was done.
template <class V, class Kernel>
bool run_boxes(const std::optional<BoxMean>& box, const V& from, const V& to, Kernel kernel, int64_t begin,
               int64_t end) {
  if (!box || from.pixel != box->channels || to.pixel != box->channels) return false;
  kernel(BoxMeanCall<V>{*box, from, to}, begin, end);
  return true;
}

}  // namespace

void avg_pool_rows(const PoolCall& call, int64_t begin, int64_t end) {
  if (!run_boxes(box_mean_of(call), call.input, call.output, kernels().box_mean, begin, end))
    kernels().avg_pool(call, begin, end);
}

void avg_pool_rows(const NarrowPool& pool, int64_t begin, int64_t end) {
  if (run_boxes(box_mean_of(pool.call), pool.input, pool.output, bf16_kernels().box_mean, begin, end)) return;
  AvgPool16Call call{pool.call, pool.input, pool.output, nullptr};
  const int64_t bytes = bf16_kernels().avg_pool_scratch(call);
  call.scratch = thread_scratch(ScratchSlot::kPooled, (bytes + 3) / 4);
  bf16_kernels().avg_pool(call, begin, end);
}

void avg_pool_backward_rows(const PoolBackwardCall& call, int64_t begin, int64_t end) {
  if (!run_boxes(gradient_of(call.pool), call.grad, call.grad_input, kernels().box_mean, begin, end))
    kernels().avg_pool_backward(call, begin, end);
}

void avg_pool_backward_rows(const NarrowPoolBackward& pool, int64_t begin, int64_t end) {
  if (!run_boxes(gradient_of(pool.call), pool.grad, pool.grad_input, bf16_kernels().box_mean, begin, end))
    pool.run(begin, end);
}

}  // namespace cnnfast::cpu
