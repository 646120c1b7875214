#include "cpu/streamed_linear.h"

#include <ATen/Functions.h>

#include <algorithm>

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

// Below this much work a second thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 17;

int team_for(const LinearGradCall& c) { return c.rows * c.in * c.out < kSerialProducts ? 1 : team_size(); }

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

bool multiplies_near_weights(const at::Tensor& rows, const at::Tensor& weight) {
  return rows.size(0) > 0 && rows.size(0) <= kSomeRows && weight.numel() <= kManyWeights &&
         is_plain_float(rows) && is_plain_float(weight) && weight.is_contiguous();
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

namespace {

// Threads share columns of the weight, which each reads once.
void far_input_grad(const LinearGradCall& call) {
  parallel_team(team_for(call), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(call.in, kLineFloats, thread, team);
    LinearGradCall own = call;
    own.scratch = scratch_for(call.rows);
    kernels().linear_input_grad(own, begin, end);
  });
}

// Threads share rows, some of which at a time meet all weights. `grad`: rows x out.
void near_input_grad(LinearGradCall call, const at::Tensor& grad) {
  const int64_t rows = call.rows, groups = (rows + kFewRows - 1) / kFewRows;
  const float* const from = grad.const_data_ptr<float>();
  parallel_team(team_for(call), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(groups, 1, thread, team);
    float* const scratch = thread_scratch(ScratchSlot::kGathered, kFewRows * call.out);
    for (int64_t group = begin; group < end; ++group) {
      LinearGradCall own = call;
      const int64_t first = group * kFewRows;
      own.rows = std::min(kFewRows, rows - first);
      for (int64_t r = 0; r < own.rows; ++r)
        for (int64_t o = 0; o < call.out; ++o) scratch[o * own.rows + r] = from[(first + r) * call.out + o];
      own.grad = scratch;
      own.to = call.to + first * call.in;
      own.scratch = scratch_for(own.rows);
      kernels().linear_input_grad(own, 0, call.in);
    }
  });
}

}  // namespace

at::Tensor streamed_linear_input_grad(const at::Tensor& grad, const at::Tensor& weight) {
  const int64_t rows = grad.size(0), in = weight.size(1), out = weight.size(0);
  if (rows > kFewRows && !multiplies_near_weights(grad, weight)) return at::mm(grad, weight);
  const at::Tensor to = gradient_empty({rows, in}, grad.options());
  LinearGradCall call{};
  call.weight = weight.const_data_ptr<float>();
  call.to = to.data_ptr<float>();
  call.rows = rows;
  call.in = in;
  call.out = out;
  if (rows > kFewRows) {
    near_input_grad(call, grad);
    return to;
  }
  const at::Tensor scalars = turned(grad);
  call.grad = scalars.const_data_ptr<float>();
  far_input_grad(call);
  return to;
}

at::Tensor streamed_linear_weight_grad(const at::Tensor& grad, const at::Tensor& rows) {
  const int64_t in = rows.size(1), out = grad.size(1);
  at::Tensor to = gradient_empty({out, in}, grad.options());
  const bool near = rows.size(0) <= kSomeRows && to.numel() <= kManyWeights;
  if (rows.size(0) > kFewRows && !near) return at::mm_out(to, grad.t(), rows);
  const at::Tensor scalars = turned(grad);
  LinearGradCall call{};
  call.grad = scalars.const_data_ptr<float>();
  call.x = rows.const_data_ptr<float>();
  call.to = to.data_ptr<float>();
  call.rows = rows.size(0);
  call.in = in;
  call.out = out;
  parallel_team(team_for(call), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(out, 1, thread, team);
    kernels().linear_weight_grad(call, begin, end);
  });
  return to;
}

}  // namespace cnnfast::cpu
