// The operators of frozen networks.
#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "autograd/common.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "plan/network.h"
#include "plan/tuning.h"

namespace cnnfast::plan {
namespace {

using TensorVector = std::vector<at::Tensor>;
using RunPlan = TensorVector(at::TensorList, const at::Tensor&, const at::Tensor&, at::IntArrayRef);

TensorVector checked_inputs(at::TensorList inputs, const Network& network) {
  TORCH_CHECK(!inputs.empty(), "cnnfast::run_plan: inputs must not be empty");
  const bool half = network.graph().half();
  for (const at::Tensor& input : inputs)
    TORCH_CHECK((input.scalar_type() == at::kFloat || (half && input.scalar_type() == at::kBFloat16)) &&
                    input.is_cpu() && input.layout() == at::kStrided,
                "cnnfast::run_plan: ", half ? "a network frozen in bfloat16" : "a frozen network",
                " takes float32 ", half ? "or bfloat16 " : "", "CPU tensors, not ", input.scalar_type(),
                " on ", input.device(), " of shape ", input.sizes());
  return inputs.vec();
}

TensorVector run_plan_cpu(at::TensorList inputs, const at::Tensor& weights, const at::Tensor& plan,
                          at::IntArrayRef) {
  const auto network = find_network(weights, plan);
  const auto checked = checked_inputs(inputs, *network);
  TORCH_CHECK(checked.size() == network->graph().inputs.size(), "cnnfast::run_plan: the network takes ",
              network->graph().inputs.size(), " inputs, not ", checked.size());
  return network->program(checked)->run(checked);
}

TensorVector run_plan_meta(at::TensorList inputs, const at::Tensor&, const at::Tensor&,
                           at::IntArrayRef signature) {
  TORCH_CHECK(!signature.empty(),
              "cnnfast::run_plan: shapes without data need signature=plan_signature(weights, plan)");
  std::vector<c10::SymIntArrayRef> sizes;
  for (const at::Tensor& input : inputs) sizes.push_back(input.sym_sizes());
  TensorVector outputs;
  const auto options = inputs[0].options().dtype(signature[0] == kHalfOutputs ? at::kBFloat16 : at::kFloat);
  for (const auto& size : sizes_from_signature(signature, sizes))
    outputs.push_back(at::empty_symint(
        size, options, size.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
  return outputs;
}

TensorVector run_plan_autograd(at::TensorList inputs, const at::Tensor& weights, const at::Tensor& plan,
                               at::IntArrayRef signature) {
  for (const at::Tensor& input : inputs)
    TORCH_CHECK(!(at::GradMode::is_enabled() && input.requires_grad()),
                "cnnfast::run_plan: a frozen network has no gradients, but an input requires grad: use "
                "cnnfast.fuse for "
                "training, or torch.no_grad() / input.detach()");
  static auto op = typed_operator<RunPlan>("cnnfast::run_plan");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(inputs, weights, plan, signature);
}

std::tuple<TensorVector, at::Tensor> profile_plan(at::TensorList inputs, const at::Tensor& weights,
                                                  const at::Tensor& plan) {
  const auto network = find_network(weights, plan);
  const auto checked = checked_inputs(inputs, *network);
  std::vector<double> seconds(network->graph().nodes.size(), 0.0);
  auto outputs = network->program(checked)->run(checked, &seconds);
  return {std::move(outputs), at::tensor(seconds, at::kDouble)};
}

std::string describe_plan(at::TensorList inputs, const at::Tensor& weights, const at::Tensor& plan) {
  const auto network = find_network(weights, plan);
  return network->program(checked_inputs(inputs, *network))->text();
}

std::tuple<int64_t, int64_t> tune_plan(at::TensorList inputs, const at::Tensor& weights,
                                       const at::Tensor& plan) {
  const auto network = find_network(weights, plan);
  TORCH_CHECK(!network->graph().half(), "cnnfast::tune_plan: networks frozen in bfloat16 are not tuned");
  std::vector<std::vector<int64_t>> sizes;
  for (const at::Tensor& input : checked_inputs(inputs, *network)) sizes.push_back(input.sizes().vec());
  const Tuned tuned = tune(network->graph(), sizes);
  return {tuned.timed, tuned.known};
}

std::vector<int64_t> plan_signature(const at::Tensor& weights, const at::Tensor& plan) {
  return signature_of(find_network(weights, plan)->graph());
}

int64_t checksum_of(const at::Tensor& data) {
  TORCH_CHECK(data.is_cpu() && data.is_contiguous(),
              "cnnfast::checksum: data must be a contiguous CPU tensor, not ", data.sizes(), " on ",
              data.device());
  return checksum(data.const_data_ptr(), data.nbytes());
}

void clear_caches() {
  cpu::clear_pack_cache();
  cpu::release_kept_memory();
  clear_networks();
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("run_plan", TORCH_FN(run_plan_cpu));
  m.impl("profile_plan", TORCH_FN(profile_plan));
  m.impl("describe_plan", TORCH_FN(describe_plan));
  m.impl("tune_plan", TORCH_FN(tune_plan));
  m.impl("add_conv_times", TORCH_FN(add_conv_times));
  m.impl("plan_signature", TORCH_FN(plan_signature));
  m.impl("checksum", TORCH_FN(checksum_of));
}
TORCH_LIBRARY_IMPL(cnnfast, Meta, m) { m.impl("run_plan", TORCH_FN(run_plan_meta)); }
TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) { m.impl("run_plan", TORCH_FN(run_plan_autograd)); }
TORCH_LIBRARY_IMPL(cnnfast, CatchAll, m) {
  m.impl("clear_caches", TORCH_FN(clear_caches));
  m.impl("conv_times", TORCH_FN(conv_times));
  m.impl("clear_conv_times", TORCH_FN(clear_conv_times));
}

}  // namespace cnnfast::plan
