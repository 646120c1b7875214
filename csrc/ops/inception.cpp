#include "ops/inception.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

constexpr const char* kOp = "inception";
constexpr size_t kStageWords = 9;
constexpr int64_t kNoDilation[2] = {1, 1};

std::string place(const char* op, size_t branch, size_t stage) {
  return std::string(op) + ": branch " + std::to_string(branch) + ", stage " + std::to_string(stage);
}

Stage parse_stage(const std::string& where, at::IntArrayRef w) {
  TORCH_CHECK(w[0] >= 0 && w[0] <= 2, "cnnfast::", where,
              ": kind must be 0 (convolution), 1 (max pooling) or 2 (average pooling), not ", w[0]);
  TORCH_CHECK(w[1] >= 0 && w[1] <= 2, "cnnfast::", where,
              ": activation must be 0 (none), 1 (relu) or 2 (sigmoid), not ", w[1]);
  const Stage stage{static_cast<StageKind>(w[0]),
                    {static_cast<Activation::Kind>(w[1])},
                    {w[2], w[3]},
                    {w[4], w[5]},
                    {w[6], w[7]},
                    w[8],
                    -1};
  TORCH_CHECK(
      stage.kind == StageKind::kConv || w[8] == 0 || (w[8] == 1 && w[0] == 2), "cnnfast::", where,
      ": the last number must be 0 for max pooling, 0 or 1 (padding counts) for average pooling, not ", w[8]);
  return stage;
}

// Reads numbers one after another; the end of the list is an error.
class Words {
 public:
  Words(const char* op, at::IntArrayRef words) : op_(op), words_(words) {}
  at::IntArrayRef take(size_t count) {
    TORCH_CHECK(words_.size() - position_ >= count, "cnnfast::", op_, ": branches ends after ", words_.size(),
                " numbers, in the middle of a branch: ", words_);
    position_ += count;
    return words_.slice(position_ - count, count);
  }
  size_t count() {
    const int64_t n = take(1)[0];
    TORCH_CHECK(n >= 0, "cnnfast::", op_, ": branches counts ", n, " branches or stages: ", words_);
    return static_cast<size_t>(n);
  }
  void finish() const {
    TORCH_CHECK(position_ == words_.size(), "cnnfast::", op_, ": branches has ", words_.size() - position_,
                " numbers behind the last stage: ", words_);
  }

 private:
  const char* op_;
  at::IntArrayRef words_;
  size_t position_ = 0;
};

std::vector<c10::SymInt> conv_sizes(const std::string& where, const Stage& stage, const at::Tensor& input,
                                    c10::SymIntArrayRef sizes, const at::Tensor& weight,
                                    const OptionalTensor& bias) {
  const char* op = where.c_str();
  auto result = conv2d_output_sizes(op, input, sizes, weight, stage.conv_params());
  TORCH_CHECK(weight.sym_size(2) == stage.kernel[0] && weight.sym_size(3) == stage.kernel[1], "cnnfast::", op,
              ": branches gives a kernel of ", at::IntArrayRef(stage.kernel), ", but weight has shape ",
              weight.sym_sizes());
  check_parameter(op, input, "bias", bias);
  check_per_channel(op, "bias", bias, result[1]);
  return result;
}

size_t count_convolutions(const std::vector<Branch>& branches) {
  size_t count = 0;
  for (const auto& branch : branches)
    for (const auto& stage : branch) count += stage.kind == StageKind::kConv;
  return count;
}

void check_lists(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                 const std::vector<Branch>& branches) {
  check_rank(kOp, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", kOp,
              ": input must be of a floating-point type, not ", input.scalar_type());
  TORCH_CHECK(!branches.empty(), "cnnfast::", kOp, ": branches must hold at least one branch");
  const size_t convolutions = count_convolutions(branches);
  TORCH_CHECK(weights.size() == convolutions && biases.size() == convolutions, "cnnfast::", kOp,
              ": branches has ", convolutions, " convolutions, but there are ", weights.size(),
              " weights and ", biases.size(), " biases");
}

}  // namespace

Conv2dParams Stage::conv_params() const { return {stride, padding, kNoDilation, option}; }
Pool2dParams Stage::pool_params() const { return {kernel, stride, padding, kNoDilation, false}; }

std::vector<Branch> parse_branches(const char* op, at::IntArrayRef list) {
  Words words(op, list);
  std::vector<Branch> branches;
  int64_t conv = 0;
  for (size_t b = 0, branch_count = words.count(); b < branch_count; ++b) {
    Branch branch;
    for (size_t s = 0, stage_count = words.count(); s < stage_count; ++s) {
      branch.push_back(parse_stage(place(op, b, s), words.take(kStageWords)));
      if (branch.back().kind == StageKind::kConv) branch.back().conv = conv++;
    }
    branches.push_back(std::move(branch));
  }
  words.finish();
  return branches;
}

InceptionSizes check_inception(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                               const std::vector<Branch>& branches) {
  check_lists(input, weights, biases, branches);
  InceptionSizes result;
  for (size_t b = 0; b < branches.size(); ++b) {
    auto sizes = input.sym_sizes().vec();
    auto& stages = result.stages.emplace_back();
    for (size_t s = 0; s < branches[b].size(); ++s) {
      const Stage& stage = branches[b][s];
      const std::string where = place(kOp, b, s);
      sizes = stage.kind == StageKind::kConv
                  ? conv_sizes(where, stage, input, sizes, weights[stage.conv], biases.get(stage.conv))
                  : pool2d_output_sizes(where.c_str(), sizes, stage.pool_params());
      stages.push_back(sizes);
    }
    TORCH_CHECK(b == 0 || (sizes[2] == result.output[2] && sizes[3] == result.output[3]), "cnnfast::", kOp,
                ": branch ", b, " gives images of ", sizes[2], " x ", sizes[3], ", but branch 0 of ",
                result.output[2], " x ", result.output[3]);
    result.channels.push_back(sizes[1]);
    if (b == 0)
      result.output = std::move(sizes);
    else
      result.output[1] += sizes[1];
  }
  return result;
}

std::vector<at::Tensor> inception_by(StageRunner run, const at::Tensor& input, at::TensorList weights,
                                     const OptionalTensors& biases, at::IntArrayRef list) {
  return inception_by_branches(
      [run](size_t, const Stage& stage, const at::Tensor& x, const at::Tensor& weight,
            const OptionalTensor& bias, const at::Tensor& target) { run(stage, x, weight, bias, target); },
      input, weights, biases, list);
}

namespace {

at::Tensor make_output(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty_symint(sizes, options, at::MemoryFormat::ChannelsLast);
}

}  // namespace

std::vector<at::Tensor> inception_by_branches(BranchRunner run, const at::Tensor& input,
                                              at::TensorList weights, const OptionalTensors& biases,
                                              at::IntArrayRef list) {
  const auto next_stage = [&](size_t number, const Branch& branch, size_t done,
                              const std::vector<at::Tensor>& values) -> size_t {
    const Stage& stage = branch[done];
    const bool conv = stage.conv >= 0;
    run(number, stage, values[done], conv ? weights[stage.conv] : at::Tensor(),
        conv ? biases.get(stage.conv) : OptionalTensor(), values[done + 1]);
    return 1;
  };
  return inception_by_chains(next_stage, make_output, input, weights, biases, list);
}

std::vector<at::Tensor> inception_by_chains(ChainRunner run, OutputMaker make, const at::Tensor& input,
                                            at::TensorList weights, const OptionalTensors& biases,
                                            at::IntArrayRef list) {
  const auto branches = parse_branches(kOp, list);
  const auto sizes = check_inception(input, weights, biases, branches);
  std::vector<at::Tensor> outputs{make(sizes.output, input.options())};
  c10::SymInt channel = 0;
  for (size_t b = 0; b < branches.size(); ++b) {
    const Branch& branch = branches[b];
    const at::Tensor slice = outputs[0].narrow_symint(1, channel, sizes.channels[b]);
    std::vector<at::Tensor> values{input};
    for (size_t s = 0; s + 1 < branch.size(); ++s) {
      values.push_back(make(sizes.stages[b][s], input.options()));
      outputs.push_back(values.back());
    }
    values.push_back(slice);
    for (size_t done = 0; done < branch.size();) done += run(b, branch, done, values);
    if (branch.empty()) slice.copy_(input);
    channel += sizes.channels[b];
  }
  return outputs;
}

namespace {

void run_stage(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
               const OptionalTensor& bias, const at::Tensor& target) {
  at::Tensor y;
  if (stage.kind == StageKind::kConv)
    y = at::conv2d(input, as_type(weight, input.scalar_type()), as_type(bias, input.scalar_type()),
                   stage.stride, stage.padding, kNoDilation, stage.option);
  else if (stage.kind == StageKind::kMaxPool)
    y = std::get<0>(at::max_pool2d_with_indices(input, stage.kernel, stage.stride, stage.padding));
  else
    y = at::avg_pool2d(input, stage.kernel, stage.stride, stage.padding, false, stage.option != 0);
  target.copy_(activate(y, stage.activation));
}

}  // namespace

std::vector<at::Tensor> inception_composite(const at::Tensor& input, at::TensorList weights,
                                            const OptionalTensors& biases, at::IntArrayRef branches) {
  return inception_by(run_stage, input, weights, biases, branches);
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("inception", TORCH_FN(inception_composite));
  m.impl("inception_backward", TORCH_FN(inception_backward));
}

}  // namespace cnnfast
