// local_response_norm on the CPU: float32 through the kernel table, other types through ATen.
#include "ops/local_response_norm.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 13;

at::Tensor with_channels_adjacent(const at::Tensor& t) {
  return channels_adjacent(t) ? t : channels_last_copy(t);
}

struct LrnParams {
  int64_t size;
  double alpha, beta, k;
};

LrnCall call_for(const at::Tensor& images, const at::Tensor& output, const LrnParams& p) {
  return {view_of(images),
          view_of(output),
          images.size(1),
          images.size(2),
          images.size(3),
          p.size,
          static_cast<float>(p.alpha),
          static_cast<float>(p.beta),
          static_cast<float>(p.k)};
}

at::Tensor local_response_norm_cpu(const at::Tensor& input, int64_t size, double alpha, double beta,
                                   double k) {
  if (takes_widened(input))
    return rounded_to(input.scalar_type(), local_response_norm_cpu(widened(input), size, alpha, beta, k));
  if (!is_plain_float(input)) return local_response_norm_composite(input, size, alpha, beta, k);
  check_local_response_norm(input, size);
  const at::Tensor output = at::empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const at::Tensor images = with_channels_adjacent(input);
  const LrnCall call = call_for(images, output, {size, alpha, beta, k});
  parallel_team(input.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(input.size(0) * call.height, 1, thread, team);
    kernels().lrn(call, begin, end);
  });
  return output;
}

at::Tensor local_response_norm_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                            int64_t size, double alpha, double beta, double k) {
  if (takes_widened(grad_output, {input}))
    return rounded_to(input.scalar_type(),
                      local_response_norm_backward_cpu(widened_kept(grad_output), widened_kept(input), size,
                                                       alpha, beta, k));
  if (!is_plain_float(input) || !is_plain_float(grad_output))
    return local_response_norm_backward_composite(grad_output, input, size, alpha, beta, k);
  check_local_response_norm(input, size);
  const at::Tensor output = at::empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const at::Tensor images = with_channels_adjacent(input), grad = with_channels_adjacent(grad_output);
  const LrnCall norm = call_for(images, output, {size, alpha, beta, k});
  const View grad_view = view_of(grad);
  const int threads = input.numel() < kSerialElements ? 1 : team_size();
  std::vector<float> scratch(static_cast<size_t>(2 * norm.channels * threads));
  parallel_team(threads, [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(input.size(0) * norm.height, 1, thread, team);
    kernels().lrn_backward({norm, grad_view, scratch.data() + 2 * norm.channels * thread}, begin, end);
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("local_response_norm", TORCH_FN(local_response_norm_cpu));
  m.impl("local_response_norm_backward", TORCH_FN(local_response_norm_backward_cpu));
}

}  // namespace cnnfast::cpu
