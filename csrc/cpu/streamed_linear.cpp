#include "cpu/streamed_linear.h"

#include <ATen/Functions.h>

#include "cpu/aligned_floats.h"
#include "cpu/kernel_table.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

// More take longer than memory does, and there are better blocks for them.
constexpr int64_t kFewRows = 32;
// Threads share whole cache lines of columns.
constexpr int64_t kLineFloats = 16;

float* scratch_for(int64_t rows) {
  return thread_scratch(ScratchSlot::kStrip, kernels().linear_scratch(rows));
}

// Of out features by rows, which the kernels read as scalars.
at::Tensor turned(const at::Tensor& grad) { return grad.t().contiguous(); }

}  // namespace

bool streams_linear(const at::Tensor& rows, const at::Tensor& weight) {
  return rows.size(0) <= kFewRows && keeps_linear_gradients(rows, weight);
}

bool keeps_linear_gradients(const at::Tensor& rows, const at::Tensor& weight) {
  return rows.size(0) > 0 && weight.numel() > kManyWeights && is_plain_float(rows) &&
         is_plain_float(weight) && weight.is_contiguous();
}

at::Tensor streamed_linear(const at::Tensor& rows, const at::Tensor& weight) {
  const int64_t in = weight.size(1), out = weight.size(0);
  const at::Tensor y = at::empty({rows.size(0), out}, rows.options());
  LinearCall call{};
  call.x = rows.const_data_ptr<float>();
  call.weight = weight.const_data_ptr<float>();
  call.y = y.data_ptr<float>();
  call.rows = rows.size(0);
  call.in = in;
  call.out = out;
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(out, 1, thread, team);
    LinearCall own = call;
    own.scratch = scratch_for(call.rows);
    kernels().linear(own, begin, end);
  });
  return y;
}

at::Tensor streamed_linear_input_grad(const at::Tensor& grad, const at::Tensor& weight) {
  const int64_t in = weight.size(1), out = weight.size(0);
  if (grad.size(0) > kFewRows) return at::mm(grad, weight);
  const at::Tensor scalars = turned(grad), to = gradient_empty({grad.size(0), in}, grad.options());
  LinearGradCall call{};
  call.grad = scalars.const_data_ptr<float>();
  call.weight = weight.const_data_ptr<float>();
  call.to = to.data_ptr<float>();
  call.rows = grad.size(0);
  call.in = in;
  call.out = out;
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(in, kLineFloats, thread, team);
    LinearGradCall own = call;
    own.scratch = scratch_for(call.rows);
    kernels().linear_input_grad(own, begin, end);
  });
  return to;
}

at::Tensor streamed_linear_weight_grad(const at::Tensor& grad, const at::Tensor& rows) {
  const int64_t in = rows.size(1), out = grad.size(1);
  at::Tensor to = gradient_empty({out, in}, grad.options());
  if (rows.size(0) > kFewRows) return at::mm_out(to, grad.t(), rows);
  const at::Tensor scalars = turned(grad);
  LinearGradCall call{};
  call.grad = scalars.const_data_ptr<float>();
  call.x = rows.const_data_ptr<float>();
  call.to = to.data_ptr<float>();
  call.rows = rows.size(0);
  call.in = in;
  call.out = out;
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(out, 1, thread, team);
    kernels().linear_weight_grad(call, begin, end);
  });
  return to;
}

}  // namespace cnnfast::cpu
