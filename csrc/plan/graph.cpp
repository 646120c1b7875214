#include "plan/graph.h"

#include <array>
#include <cmath>
#include <cstring>

namespace cnnfast::plan {
namespace {

struct OpRule {
  const char* name;
  int64_t min_inputs, max_inputs, attributes;
};

constexpr int64_t kMany = 1 << 20;
constexpr std::array<OpRule, 34> kRules{{{"input", 0, 0, 2},
                                         {"conv2d", 1, 2, Conv2dAttr::kCount},
                                         {"linear", 1, 1, 4},
                                         {"max_pool2d", 1, 1, 9},
                                         {"avg_pool2d", 1, 1, 9},
                                         {"flatten", 1, 1, 0},
                                         {"reshape_image", 1, 1, 3},
                                         {"activation", 1, 1, 0},
                                         {"add", 2, 2, 0},
                                         {"concat", 1, kMany, 0},
                                         {"global_avg_pool", 1, 1, 0},
                                         {"affine", 1, 1, 3},
                                         {"local_response_norm", 1, 1, 4},
                                         {"multiply", 2, 3, 0},
                                         {"slice", 1, 1, 2},
                                         {"channel_shuffle", 1, 1, 1},
                                         {"adaptive_avg_pool2d", 1, 1, 2},
                                         {"adaptive_max_pool2d", 1, 1, 2},
                                         {"pad", 1, 2, 5},
                                         {"interpolate", 1, 2, InterpolateAttr::kCount},
                                         {"layer_norm", 1, 1, 4},
                                         {"group_norm", 1, 1, 5},
                                         {"prelu", 1, 1, 2},
                                         {"to_image", 1, 1, 0},
                                         {"channel_max", 1, 1, 0},
                                         {"image_norm", 1, 1, 0},
                                         {"channel_conv", 1, 1, 3},
                                         {"power", 1, 1, 1},
                                         {"attention_pool", 2, 2, 0},
                                         {"crop", 1, 1, 6},
                                         {"depth_to_space", 1, 1, 7},
                                         {"mirror_pad", 1, 1, 5},
                                         {"softmax", 1, 1, 1},
                                         {"to_line", 1, 1, 0}}};

// Reads words and never past their end.
class Reader {
 public:
  Reader(const int64_t* words, int64_t count) : words_(words), count_(count) {}
  int64_t next() {
    TORCH_CHECK(at_ < count_, "cnnfast: the plan is truncated after ", count_,
                " words; write the file again");
    return words_[at_++];
  }
  std::vector<int64_t> list(int64_t length) {
    TORCH_CHECK(length >= 0 && length <= count_ - at_, "cnnfast: the plan is damaged: a list of ", length,
                " words does not fit its ", count_, " words; write the file again");
    std::vector<int64_t> result(words_ + at_, words_ + at_ + length);
    at_ += length;
    return result;
  }
  bool done() const { return at_ == count_; }

 private:
  const int64_t* words_;
  int64_t count_, at_ = 0;
};

class Checker {
 public:
  Checker(const Graph& graph, int64_t floats) : graph_(graph), floats_(floats) {}

  void check(int64_t id) const {
    const Node& node = graph_.nodes[id];
    const OpRule& rule = kRules[static_cast<size_t>(node.op)];
    const auto inputs = static_cast<int64_t>(node.inputs.size());
    require(id, inputs >= rule.min_inputs && inputs <= rule.max_inputs, "number of inputs");
    require(id, static_cast<int64_t>(node.attr.size()) == rule.attributes, "number of attributes");
    for (const int64_t input : node.inputs) require(id, input >= 0 && input < id, "input id");
    const auto& a = node.attr;
    switch (node.op) {
      case Op::kConv2d:
        return check_conv2d(id, a);
      case Op::kLinear:
        require(id, sized(a[1]) && sized(a[2]), "number of features");
        require(id, constant(a[0], product({a[1], a[2]})) && (a[3] == -1 || constant(a[3], a[1])),
                "constant's place");
        return;
      case Op::kMaxPool2d:
      case Op::kAvgPool2d:
        return check_pool(id, node);
      case Op::kReshapeImage:
        require(id, sized(a[0]) && sized(a[1]) && sized(a[2]), "image size");
        require(id, graph_.nodes[node.inputs[0]].op == Op::kInput,
                "place of the reshape (directly behind an input)");
        return;
      case Op::kAffine:
        require(id, sized(a[2]) && constant(a[0], a[2]) && constant(a[1], a[2]), "constant's place");
        return;
      case Op::kLocalResponseNorm:
        require(id, small(a[0], 1), "number of channels to normalise over");
        for (size_t i = 1; i < 4; ++i) require(id, std::isfinite(fraction(a[i])), "alpha, beta or k");
        return;
      case Op::kSlice:
        require(id, small(a[0], 0) && small(a[1], 1), "first channel or number of channels");
        return;
      case Op::kChannelShuffle:
        require(id, small(a[0], 1), "number of groups");
        return;
      case Op::kAdaptiveAvgPool2d:
      case Op::kAdaptiveMaxPool2d:
        require(id, small(a[0], 0) && small(a[1], 0), "output size");
        return;
      case Op::kMirrorPad:
        require(id, a[4] >= 0 && a[4] <= static_cast<int64_t>(MirrorMode::kCircular), "mode");
        [[fallthrough]];
      case Op::kPad:
        for (size_t i = 0; i < 4; ++i) require(id, small(a[i], 0), "padding");
        return;
      case Op::kInterpolate:
        return check_interpolate(id, node);
      case Op::kLayerNorm:
      case Op::kGroupNorm:
        require(id, sized(a[2]) && optional(a[0], a[2]) && optional(a[1], a[2]), "constant's place");
        require(id, node.op == Op::kLayerNorm || (small(a[3], 1) && a[2] % a[3] == 0), "number of groups");
        require(id, fraction(a.back()) >= 0, "eps");
        return;
      case Op::kPReLU:
        require(id, sized(a[1]) && constant(a[0], a[1]), "constant's place");
        return;
      case Op::kSoftmax:
        require(id, a[0] == 0 || a[0] == 1, "logarithm");
        return;
      case Op::kPower:
        require(id, std::isfinite(fraction(a[0])), "exponent");
        return;
      case Op::kCrop:
        for (size_t i = 0; i < 4; ++i) require(id, small(a[i], 0), "number of rows or columns");
        for (size_t i = 4; i < 6; ++i) require(id, small(a[i], 1), "stride");
        return;
      case Op::kDepthToSpace:
        for (size_t i = 0; i < 2; ++i) require(id, small(a[i], 1), "block");
        require(id, a[2] == 0 || a[2] == 1, "order of channels");
        for (size_t i = 3; i < 7; ++i) require(id, small(a[i], 0), "number of rows or columns");
        return;
      case Op::kChannelConv:
        require(id, small(a[1], 1) && a[1] % 2 == 1, "number of taps");
        require(id, constant(a[0], a[1]) && optional(a[2], 1), "constant's place");
        return;
      case Op::kInput:
        require(id, a[0] >= 1 && a[0] <= 4 && (a[1] == -1 || sized(a[1])), "rank or number of channels");
        return;
      default:
        return;
    }
  }

 private:
  void require(int64_t id, bool holds, const char* what) const {
    TORCH_CHECK(holds, "cnnfast: the plan is damaged: ", name_of(graph_, id), " has a wrong ", what,
                "; write the file again");
  }
  // Bounds keep every product below 2^63.
  static bool sized(int64_t n) { return n >= 1 && n <= (int64_t{1} << 31); }
  static int64_t product(std::initializer_list<int64_t> factors) {
    int64_t result = 1;
    for (const int64_t f : factors)
      if (__builtin_mul_overflow(result, f, &result)) return -1;
    return result;
  }
  bool constant(int64_t offset, int64_t count) const {
    return offset >= 0 && count >= 1 && count <= floats_ && offset <= floats_ - count;
  }
  bool optional(int64_t offset, int64_t count) const { return offset == -1 || constant(offset, count); }
  static bool small(int64_t n, int64_t least) { return n >= least && n <= (1 << 20); }

  void check_conv2d(int64_t id, const std::vector<int64_t>& a) const {
    using A = Conv2dAttr;
    for (const size_t i : {A::kOut, A::kIn, A::kKernelH, A::kKernelW, A::kGroups})
      require(id, sized(a[i]), "size");
    for (const size_t i : {A::kStrideH, A::kStrideW, A::kDilationH, A::kDilationW})
      require(id, small(a[i], 1), "stride or dilation");
    const bool same = a[A::kPadTop] == kSamePadding;
    for (const size_t i : {A::kPadTop, A::kPadLeft, A::kPadBottom, A::kPadRight})
      require(id, same ? a[i] == kSamePadding : small(a[i], 0), "padding");
    require(id, a[A::kOut] % a[A::kGroups] == 0, "number of groups");
    require(id, a[A::kLargestTile] >= 0, "tile size");
    require(id, a[A::kTuned] == 0 || a[A::kTuned] == 1, "mark of tuning");
    require(id,
            constant(a[A::kWeight], product({a[A::kOut], a[A::kIn], a[A::kKernelH], a[A::kKernelW]})) &&
                (a[A::kBias] == -1 || constant(a[A::kBias], a[A::kOut])),
            "constant's place");
  }

  void check_interpolate(int64_t id, const Node& node) const {
    using A = InterpolateAttr;
    const auto& a = node.attr;
    require(id, a[A::kMode] >= 0 && a[A::kMode] <= static_cast<int64_t>(InterpolateMode::kBilinear), "mode");
    require(id, a[A::kAlignCorners] == 0 || a[A::kAlignCorners] == 1, "align_corners");
    for (const auto& [size, scale] : {std::pair(A::kHeight, A::kScaleH), std::pair(A::kWidth, A::kScaleW)}) {
      const double factor = fraction(a[scale]);
      const double scaled = factor * (1 << 20);  // whole for every scale whose multiples are exact
      require(id, small(a[size], 0) && factor >= 0 && factor <= 4096 && std::floor(scaled) == scaled,
              "size or scale");
      require(id, node.inputs.size() == 2 || a[size] > 0 || factor > 0, "size: it has none");
    }
  }

  void check_pool(int64_t id, const Node& node) const {
    const auto& a = node.attr;
    for (size_t i = 0; i < 4; ++i) require(id, small(a[i], 1), "kernel size or stride");
    const bool same = a[4] == kSamePadding;
    for (size_t i = 4; i < 6; ++i)
      require(id, same ? a[i] == kSamePadding : a[i] >= 0 && a[i] <= a[i - 4] / 2, "padding");
    if (node.op == Op::kMaxPool2d) {
      for (size_t i = 6; i < 8; ++i) require(id, small(a[i], 1), "dilation");
      require(id, a[8] == 0 || a[8] == 1, "ceil_mode");
    } else {
      for (size_t i = 6; i < 8; ++i) require(id, a[i] == 0 || a[i] == 1, "ceil_mode or count_include_pad");
    }
  }

  const Graph& graph_;
  int64_t floats_;
};

void check_tensors(const at::Tensor& weights, const at::Tensor& plan) {
  TORCH_CHECK(plan.scalar_type() == at::kLong && plan.dim() == 1 && plan.is_contiguous() && plan.is_cpu(),
              "cnnfast::run_plan: plan must be a contiguous 1-D int64 CPU tensor, not ", plan.scalar_type(),
              " of shape ", plan.sizes(), " on ", plan.device());
  TORCH_CHECK(weights.scalar_type() == at::kFloat && weights.dim() == 1 && weights.is_contiguous() &&
                  weights.is_cpu(),
              "cnnfast::run_plan: weights must be a contiguous 1-D float32 CPU tensor, not ",
              weights.scalar_type(), " of shape ", weights.sizes(), " on ", weights.device());
}

void check_header(const at::Tensor& weights, const at::Tensor& plan) {
  const int64_t* words = plan.const_data_ptr<int64_t>();
  TORCH_CHECK(plan.numel() >= 7 && words[0] == kMagic, "cnnfast: this is no cnnfast plan");
  TORCH_CHECK(words[1] >= kOldestFormat && words[1] <= kFormatVersion,
              "cnnfast: the plan has format version ", words[1], ", this library reads versions ",
              kOldestFormat, " to ", kFormatVersion,
              "; update cnnfast or write the file again with this version");
  TORCH_CHECK(words[2] == checksum(words + 3, sizeof(int64_t) * static_cast<size_t>(plan.numel() - 3)),
              "cnnfast: the plan is damaged (its checksum does not match); write the file again");
  TORCH_CHECK(words[4] == weights.numel(), "cnnfast: the plan needs ", words[4],
              " constants, but weights has ", weights.numel());
  TORCH_CHECK(
      words[3] == checksum(weights.const_data_ptr(), sizeof(float) * static_cast<size_t>(weights.numel())),
      "cnnfast: the network's constants are damaged (their checksum does not match); write the file again");
}

Storage storage(int64_t word) {
  TORCH_CHECK(word == 0 || word == 1, "cnnfast: the plan's values have type ", word,
              ", which this version does not know; update cnnfast");
  return static_cast<Storage>(word);
}

}  // namespace

bool is_view(Op op) {
  return op == Op::kFlatten || op == Op::kSlice || op == Op::kToImage || op == Op::kToLine;
}

const char* op_name(Op op) { return kRules[static_cast<size_t>(op)].name; }

std::string name_of(const Graph& graph, int64_t node) {
  return "node " + std::to_string(node) + " (" + op_name(graph.nodes[node].op) + ")";
}

double fraction(int64_t word) {
  double value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// Four lanes of multiply and rotate: fast enough to check hundreds of megabytes at load.
int64_t checksum(const void* data, size_t bytes) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15ull;
  uint64_t lane[4] = {1, 2, 3, 4};
  const auto* p = static_cast<const unsigned char*>(data);
  auto mix = [](uint64_t h, uint64_t word) {
    h = (h ^ word) * kPrime;
    return (h << 29) | (h >> 35);
  };
  size_t left = bytes;
  for (; left >= 32; left -= 32, p += 32)
    for (int i = 0; i < 4; ++i) {
      uint64_t word;
      std::memcpy(&word, p + 8 * i, 8);
      lane[i] = mix(lane[i], word);
    }
  for (; left > 0; --left, ++p) lane[0] = mix(lane[0], *p + 256);
  uint64_t h = bytes;
  for (const uint64_t l : lane) h = mix(h, l);
  h ^= h >> 32;
  return static_cast<int64_t>(h * kPrime);
}

Graph parse(const at::Tensor& weights, const at::Tensor& plan) {
  check_tensors(weights, plan);
  check_header(weights, plan);
  Reader reader(plan.const_data_ptr<int64_t>() + 5, plan.numel() - 5);
  const bool has_numbers = plan.const_data_ptr<int64_t>()[1] >= 4;
  const int64_t n_nodes = reader.next(), n_outputs = reader.next();
  Graph graph;
  if (plan.const_data_ptr<int64_t>()[1] >= 5) {
    graph.values = storage(reader.next());
    graph.results = storage(reader.next());
    TORCH_CHECK(graph.half() || graph.results == Storage::kFloat32,
                "cnnfast: the plan is damaged: float32 values and bfloat16 outputs; write the file again");
  }
  for (int64_t id = 0; id < n_nodes; ++id) {
    const int64_t op = reader.next(), activation = reader.next();
    TORCH_CHECK(op >= 0 && op < static_cast<int64_t>(kRules.size()) && activation >= 0 &&
                    activation < Activation::kKinds,
                "cnnfast: node ", id, " has operation ", op, " and activation ", activation,
                ", which this version does not know; update cnnfast");
    Node node{static_cast<Op>(op), {static_cast<Activation::Kind>(activation)}, {}, {}};
    if (has_numbers) {
      node.activation.a = static_cast<float>(fraction(reader.next()));
      node.activation.b = static_cast<float>(fraction(reader.next()));
    }
    node.inputs = reader.list(reader.next());
    node.attr = reader.list(reader.next());
    graph.nodes.push_back(std::move(node));
    Checker(graph, weights.numel()).check(id);
    if (graph.nodes.back().op == Op::kInput) graph.inputs.push_back(id);
  }
  graph.outputs = reader.list(n_outputs);
  TORCH_CHECK(
      reader.done() && !graph.outputs.empty() && !graph.inputs.empty(),
      "cnnfast: the plan is damaged: it has no input, no output or words left over; write the file again");
  for (const int64_t id : graph.outputs)
    TORCH_CHECK(id >= 0 && id < n_nodes, "cnnfast: the plan is damaged: output ", id,
                " is no node; write the file again");
  return graph;
}

}  // namespace cnnfast::plan
