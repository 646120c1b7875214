#include "plan/shapes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "ops/pool2d.h"

namespace cnnfast::plan {
namespace {

using Sizes = std::vector<int64_t>;

class Inference {
 public:
  Inference(const Graph& graph, const std::vector<Sizes>& input_sizes)
      : graph_(graph), input_sizes_(input_sizes) {}

  std::vector<Value> all() {
    for (int64_t id = 0; id < static_cast<int64_t>(graph_.nodes.size()); ++id) values_.push_back(value(id));
    return std::move(values_);
  }

 private:
  Value value(int64_t id) {
    const Node& node = graph_.nodes[id];
    switch (node.op) {
      case Op::kInput:
        return input(id, node);
      case Op::kReshapeImage:
        return reshaped(node);
      case Op::kConv2d:
        return conv2d(id, node);
      case Op::kLinear:
        return linear(id, node);
      case Op::kMaxPool2d:
      case Op::kAvgPool2d:
        return windowed(id, in(id, 0), node);
      case Op::kGlobalAvgPool: {
        Value v = images(id, 0);
        v.height = v.width = 1;
        return v;
      }
      case Op::kFlatten: {
        Value v = in(id, 0);
        v.rank = 2;
        return v;
      }
      case Op::kToLine: {
        Value v = images(id, 0);
        require(id, v.height == 1, v);
        v.rank = 3;
        return v;
      }
      case Op::kActivation:
        return in(id, 0);
      case Op::kLocalResponseNorm:
        return images(id, 0);
      case Op::kAffine:
        require(id, in(id, 0).channels == node.attr[2], in(id, 0));
        return in(id, 0);
      case Op::kAdd:
        require(id, broadcasts(id), in(id, 1));
        return in(id, 0);
      case Op::kConcat:
        return concat(id, node);
      case Op::kMultiply:
        return multiply(id, node);
      case Op::kSlice:
        return slice(id, node);
      case Op::kChannelShuffle:
        require(id, images(id, 0).channels % node.attr[0] == 0, in(id, 0));
        return in(id, 0);
      case Op::kAdaptiveAvgPool2d:
      case Op::kAdaptiveMaxPool2d:
        return resized(id, node);
      case Op::kMirrorPad:
        require(id, reaches(in(id, 0), node), in(id, 0));
        [[fallthrough]];
      case Op::kPad: {
        Value v = images(id, 0);
        if (node.inputs.size() == 2) {
          const Value& like = images(id, 1);
          require(id, like.images == v.images && like.height >= v.height && like.width >= v.width, like);
          v.height = like.height;
          v.width = like.width;
          return v;
        }
        v.height += node.attr[0] + node.attr[2];
        v.width += node.attr[1] + node.attr[3];
        return v;
      }
      case Op::kInterpolate:
      case Op::kCrop:
        return resized(id, node);
      case Op::kDepthToSpace: {
        const int64_t block = node.attr[0] * node.attr[1];
        require(id, images(id, 0).channels % block == 0, in(id, 0));
        Value v = resized(id, node);
        v.channels /= block;
        return v;
      }
      case Op::kLayerNorm:
      case Op::kGroupNorm:
        require(id, in(id, 0).channels == node.attr[2] && has_plain_channels(in(id, 0)), in(id, 0));
        return in(id, 0);
      case Op::kPReLU:
        require(id, in(id, 0).channels == node.attr[1], in(id, 0));
        return in(id, 0);
      case Op::kChannelMax: {
        Value v = images(id, 0);
        v.channels = 1;
        return v;
      }
      case Op::kAttentionPool:
        require(id, is_per_pixel(images(id, 0), in(id, 1)), in(id, 1));
        [[fallthrough]];
      case Op::kImageNorm: {
        Value v = images(id, 0);
        v.height = v.width = 1;
        return v;
      }
      case Op::kChannelConv:
        require(id, in(id, 0).height == 1 && in(id, 0).width == 1, in(id, 0));
        return in(id, 0);
      case Op::kSoftmax:
        require(id, has_plain_channels(in(id, 0)), in(id, 0));
        return in(id, 0);
      case Op::kPower:
        return in(id, 0);
      case Op::kToImage: {
        Value v = in(id, 0);
        require(id, v.height == 1 && v.width == 1, v);
        v.rank = 4;
        return v;
      }
    }
    TORCH_CHECK(false, "cnnfast: ", name_of(graph_, id), " has no shape rule");
  }

  // Whether an image is large enough to be mirrored so far.
  static bool reaches(const Value& v, const Node& node) {
    const auto mode = static_cast<MirrorMode>(node.attr[4]);
    if (mode == MirrorMode::kReplicate) return true;
    const int64_t own = mode == MirrorMode::kReflect ? 1 : 0;
    return std::max(node.attr[0], node.attr[2]) + own <= v.height &&
           std::max(node.attr[1], node.attr[3]) + own <= v.width;
  }

  const Value& in(int64_t id, size_t i) const { return values_[graph_.nodes[id].inputs[i]]; }
  const Value& images(int64_t id, size_t i) const {
    require(id, in(id, i).rank == 4, in(id, i));
    return in(id, i);
  }
  void require(int64_t id, bool fits, const Value& v) const {
    TORCH_CHECK(fits, "cnnfast: input sizes do not fit the network: ", name_of(graph_, id), " cannot take ",
                at::IntArrayRef(v.sizes()));
  }

  static bool has_plain_channels(const Value& v) { return v.rank == 4 || (v.height == 1 && v.width == 1); }

  // Whether the second operand has the shape of the first, or is repeated over it.
  bool broadcasts(int64_t id) const {
    const Value &x = in(id, 0), &other = in(id, 1);
    return x == other || is_per_channel(x, other) || is_per_pixel(x, other);
  }

  Value multiply(int64_t id, const Node& node) const {
    require(id, broadcasts(id), in(id, 1));
    if (node.inputs.size() == 3) require(id, in(id, 0) == in(id, 2), in(id, 2));
    return in(id, 0);
  }

  Value slice(int64_t id, const Node& node) const {
    Value v = in(id, 0);
    require(id, has_plain_channels(v) && node.attr[0] + node.attr[1] <= v.channels, v);
    v.channels = node.attr[1];
    return v;
  }

  // By a scale, to a fixed size, or to that of a second input.
  Value resized(int64_t id, const Node& node) const {
    Value v = images(id, 0);
    if (node.inputs.size() == 2) {
      require(id, images(id, 1).images == v.images, in(id, 1));
      v.height = in(id, 1).height;
      v.width = in(id, 1).width;
      return v;
    }
    const Value before = v;
    const WindowPair w = *window_of(node);
    v.height = window_count(v.height, w.height).expect_int();
    v.width = window_count(v.width, w.width).expect_int();
    require(id, v.height > 0 && v.width > 0, before);
    return v;
  }

  const Sizes& external(int64_t id) const {
    const auto at = std::find(graph_.inputs.begin(), graph_.inputs.end(), id) - graph_.inputs.begin();
    return input_sizes_[at];
  }

  Value input(int64_t id, const Node& node) const {
    const Sizes& sizes = external(id);
    TORCH_CHECK(static_cast<int64_t>(sizes.size()) == node.attr[0] || reshaped_later(id),
                "cnnfast: the network takes an input of ", node.attr[0], " dimensions, not ",
                at::IntArrayRef(sizes));
    Value v;
    v.rank = sizes.size() == 3 && !reshaped_later(id) ? 4 : static_cast<int64_t>(sizes.size());
    v.images = sizes.empty() ? 1 : sizes[0];
    v.channels = sizes.size() > 1 ? sizes[1] : 1;
    if (sizes.size() == 3) v.width = sizes[2];
    if (sizes.size() == 4) {
      v.height = sizes[2];
      v.width = sizes[3];
    }
    if (reshaped_later(id)) return v;
    TORCH_CHECK(node.attr[1] == -1 || v.channels == node.attr[1], "cnnfast: the network takes an input of ",
                node.attr[1], v.rank == 4 ? " channels" : " features", ", not of shape ",
                at::IntArrayRef(sizes));
    TORCH_CHECK(v.rank == 2 || v.rank == 4,
                "cnnfast: the network takes images, lines or features, not shape ", at::IntArrayRef(sizes));
    TORCH_CHECK(v.channels > 0 && v.height > 0 && v.width > 0, "cnnfast: the input's shape ",
                at::IntArrayRef(sizes), " is empty");
    return v;
  }

  bool reshaped_later(int64_t id) const {
    return std::any_of(graph_.nodes.begin(), graph_.nodes.end(),
                       [&](const Node& n) { return n.op == Op::kReshapeImage && n.inputs[0] == id; });
  }

  // Whole images only: any other shape with the right number of elements would be cut up and mixed.
  Value reshaped(const Node& node) const {
    const Sizes& sizes = external(node.inputs[0]);
    const int64_t channels = node.attr[0], height = node.attr[1], width = node.attr[2];
    const int64_t count = channels * height * width;
    const auto ends_with = [&](const Sizes& tail) {
      return sizes.size() >= tail.size() && std::equal(tail.rbegin(), tail.rend(), sizes.rbegin());
    };
    const bool images = sizes.size() == 4 && ends_with({channels, height, width});
    const bool planes = channels == 1 && ends_with({height, width});
    TORCH_CHECK(images || planes || ends_with({count}), "cnnfast: the network takes an input of shape (N, ",
                channels, ", ", height, ", ", width, ") or (N, ", count, "), not ", at::IntArrayRef(sizes));
    return {4, c10::multiply_integers(sizes) / count, channels, height, width};
  }

  Value windowed(int64_t id, Value v, const Node& node) const {
    require(id, v.rank == 4, v);
    const WindowPair w = *window_of(node);
    const auto fits = [](int64_t size, const Window& window) {
      return window.ceil_mode || size + window.pad_begin + window.pad_end >= window.extent;
    };
    require(id, fits(v.height, w.height) && fits(v.width, w.width), v);
    const Value before = v;
    v.height = window_count(v.height, w.height).expect_int();
    v.width = window_count(v.width, w.width).expect_int();
    require(id, v.height > 0 && v.width > 0, before);
    return v;
  }

  Value conv2d(int64_t id, const Node& node) const {
    using A = Conv2dAttr;
    Value v = images(id, 0);
    require(id, v.channels == node.attr[A::kIn] * node.attr[A::kGroups], v);
    v = windowed(id, v, node);
    v.channels = node.attr[A::kOut];
    if (node.inputs.size() == 2) require(id, in(id, 1) == v, in(id, 1));
    return v;
  }

  Value linear(int64_t id, const Node& node) const {
    const Value& v = in(id, 0);
    require(id, v.rank == 2 && v.features() == node.attr[2], v);
    return {2, v.images, node.attr[1], 1, 1};
  }

  Value concat(int64_t id, const Node& node) const {
    Value v = in(id, 0);
    v.channels = 0;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const Value& x = in(id, i);
      require(id, x.rank == v.rank && x.images == v.images && x.height == v.height && x.width == v.width, x);
      require(id, x.rank == 4 || (x.height == 1 && x.width == 1), x);
      v.channels += x.channels;
    }
    return v;
  }

  const Graph& graph_;
  const std::vector<Sizes>& input_sizes_;
  std::vector<Value> values_;
};

void append(std::vector<int64_t>& words, const Window& w) {
  words.insert(words.end(), {w.pad_begin, w.pad_end, w.extent, w.stride, w.ceil_mode});
}

Window padded(int64_t begin, int64_t end, int64_t extent, int64_t stride, int64_t ceil_mode) {
  if (begin == kSamePadding) return {0, 0, extent, stride, Window::kSame};
  return {begin, end, extent, stride, ceil_mode};
}

bool keeps_size(const Window& w) {
  if (w.ceil_mode >= Window::kScaled && w.pad_begin + w.pad_end != 0) return false;
  if (w.ceil_mode == Window::kScaled) return w.stride == w.extent;
  if (w.ceil_mode == Window::kSame) return w.stride == 1;
  return w.ceil_mode != Window::kFixed && w.stride == 1 && w.pad_begin + w.pad_end == w.extent - 1;
}

// The input whose size a node's follows from.
int64_t sized_like(const Node& node) {
  const bool by_second = (node.op == Op::kInterpolate || node.op == Op::kPad) && node.inputs.size() == 2;
  return node.inputs[by_second ? 1 : 0];
}

// Channels and windows of one output, walking back along first inputs.
void append_output(const Graph& graph, int64_t id, std::vector<int64_t>& words) {
  int64_t rank = 0;  // not known yet: 4 unless a node says otherwise
  bool single_pixel = false, closed = false;
  std::vector<WindowPair> windows;
  std::array<int64_t, 3> image{-1, -1, -1};
  std::function<int64_t(int64_t)> channels_of = [&](int64_t at) -> int64_t {
    const Node& node = graph.nodes[at];
    if (node.op == Op::kConv2d || node.op == Op::kLinear) return node.attr[1];
    if (node.op == Op::kReshapeImage) return node.attr[0];
    if (node.op == Op::kAffine) return node.attr[2];
    if (node.op == Op::kInput || node.op == Op::kSlice) return node.attr[1];
    if (node.op == Op::kChannelMax) return 1;
    if (node.op == Op::kDepthToSpace) {
      const int64_t c = channels_of(node.inputs[0]);
      return c < 0 ? c : c / (node.attr[0] * node.attr[1]);
    }
    if (node.op != Op::kConcat) return channels_of(node.inputs[0]);
    int64_t sum = 0;
    for (const int64_t input : node.inputs) {
      const int64_t c = channels_of(input);
      if (c < 0) return -1;
      sum += c;
    }
    return sum;
  };
  const int64_t channels = channels_of(id);
  for (; graph.nodes[id].op != Op::kInput; id = sized_like(graph.nodes[id])) {
    const Node& node = graph.nodes[id];
    const bool gives_one_pixel = node.op == Op::kLinear || node.op == Op::kGlobalAvgPool ||
                                 node.op == Op::kToImage || node.op == Op::kImageNorm ||
                                 node.op == Op::kAttentionPool;
    if (gives_one_pixel && windows.empty()) single_pixel = true;
    if (gives_one_pixel && !windows.empty() && !closed) {
      windows.push_back({Window::fixed(1), Window::fixed(1)});
      closed = true;  // what stands in front of it does not matter
    }
    if (node.op == Op::kReshapeImage) image = {node.attr[0], node.attr[1], node.attr[2]};
    if (const auto w = window_of(node);
        w && !single_pixel && !closed && !(keeps_size(w->height) && keeps_size(w->width)))
      windows.push_back(*w);
    if (rank == 0 && node.op == Op::kToImage) rank = 4;
    if (rank == 0 && node.op == Op::kToLine) rank = 3;
    if (rank == 0 && (node.op == Op::kFlatten || node.op == Op::kLinear)) rank = 2;
  }
  const bool features = graph.nodes[id].attr[0] == 2 && image[0] < 0;
  if (features && windows.empty()) single_pixel = true;
  if (rank == 0) rank = features ? 2 : 4;
  const auto input = std::find(graph.inputs.begin(), graph.inputs.end(), id) - graph.inputs.begin();
  words.insert(words.end(), {rank, input, channels, image[0], image[1], image[2],
                             single_pixel ? -1 : static_cast<int64_t>(windows.size())});
  if (single_pixel) return;
  std::reverse(windows.begin(), windows.end());
  for (const WindowPair& w : windows) {
    append(words, w.height);
    append(words, w.width);
  }
}

}  // namespace

bool is_per_channel(const Value& x, const Value& other) {
  return x.rank == 4 && other.rank == 4 && other.images == x.images && other.channels == x.channels &&
         other.height == 1 && other.width == 1;
}

bool is_per_pixel(const Value& x, const Value& other) {
  return x.rank == 4 && other.rank == 4 && other.images == x.images && other.channels == 1 &&
         other.height == x.height && other.width == x.width;
}

std::vector<int64_t> Value::sizes() const {
  if (rank == 4) return {images, channels, height, width};
  if (rank == 3) return {images, channels, width};
  return {images, features()};
}

std::optional<WindowPair> window_of(const Node& node) {
  const auto& a = node.attr;
  if (node.op == Op::kConv2d) {
    using A = Conv2dAttr;
    return WindowPair{padded(a[A::kPadTop], a[A::kPadBottom], a[A::kDilationH] * (a[A::kKernelH] - 1) + 1,
                             a[A::kStrideH], 0),
                      padded(a[A::kPadLeft], a[A::kPadRight], a[A::kDilationW] * (a[A::kKernelW] - 1) + 1,
                             a[A::kStrideW], 0)};
  }
  if (node.op == Op::kMaxPool2d)
    return WindowPair{padded(a[4], a[4], a[6] * (a[0] - 1) + 1, a[2], a[8]),
                      padded(a[5], a[5], a[7] * (a[1] - 1) + 1, a[3], a[8])};
  if (node.op == Op::kAvgPool2d)
    return WindowPair{padded(a[4], a[4], a[0], a[2], a[6]), padded(a[5], a[5], a[1], a[3], a[6])};
  if (node.op == Op::kAdaptiveAvgPool2d || node.op == Op::kAdaptiveMaxPool2d) {
    const auto side = [](int64_t size) { return size ? Window::fixed(size) : Window::scaled(1.0); };
    return WindowPair{side(a[0]), side(a[1])};
  }
  if (node.op == Op::kCrop)
    return WindowPair{{a[0], a[2], 1, a[4], Window::kSame}, {a[1], a[3], 1, a[5], Window::kSame}};
  if (node.op == Op::kDepthToSpace)
    return WindowPair{{a[3], a[5], 1, a[0], Window::kScaled}, {a[4], a[6], 1, a[1], Window::kScaled}};
  if ((node.op == Op::kPad && node.inputs.size() == 1) || node.op == Op::kMirrorPad)
    return WindowPair{{a[0], a[2], 1, 1, 0}, {a[1], a[3], 1, 1, 0}};
  if (node.op == Op::kInterpolate && node.inputs.size() == 1) {
    using A = InterpolateAttr;
    const auto side = [&](size_t size, size_t scale) {
      return a[size] ? Window::fixed(a[size]) : Window::scaled(fraction(a[scale]));
    };
    return WindowPair{side(A::kHeight, A::kScaleH), side(A::kWidth, A::kScaleW)};
  }
  return std::nullopt;
}

Window Window::on(int64_t size) const {
  if (ceil_mode != kSame) return *this;
  const int64_t count = (size + stride - 1) / stride;
  const int64_t padding = std::max<int64_t>(0, (count - 1) * stride + extent - size);
  return {padding / 2, padding - padding / 2, extent, stride, 0};
}

WindowPair window_on(const Node& node, const Value& input) {
  const WindowPair w = *window_of(node);
  return {w.height.on(input.height), w.width.on(input.width)};
}

Graph with_sized_padding(Graph graph, const std::vector<Value>& values) {
  using A = Conv2dAttr;
  for (Node& node : graph.nodes) {
    if (node.op != Op::kConv2d) continue;
    const WindowPair w = window_on(node, values[node.inputs[0]]);
    node.attr[A::kPadTop] = w.height.pad_begin;
    node.attr[A::kPadBottom] = w.height.pad_end;
    node.attr[A::kPadLeft] = w.width.pad_begin;
    node.attr[A::kPadRight] = w.width.pad_end;
  }
  return graph;
}

// A float64 is a whole number over a power of two; sizes times that number fit 64 bits for all scales that
// the checks let pass.
Window Window::scaled(double scale) {
  int64_t denominator = 1;
  while (denominator < (int64_t{1} << 20) && std::floor(scale) != scale) scale *= 2, denominator *= 2;
  return {0, 0, denominator, static_cast<int64_t>(std::floor(scale)), kScaled};
}

c10::SymInt window_count(const c10::SymInt& size, const Window& w) {
  if (w.ceil_mode == Window::kFixed) return w.extent;
  if (w.ceil_mode == Window::kScaled) return size * w.stride / w.extent - w.pad_begin - w.pad_end;
  if (w.ceil_mode == Window::kSame) return (size - w.pad_begin - w.pad_end + w.stride - 1) / w.stride;
  const c10::SymInt span = size + w.pad_begin + w.pad_end - w.extent;
  if (!w.ceil_mode) return span / w.stride + 1;
  const c10::SymInt count = (span + w.stride - 1) / w.stride + 1;
  return (count - 1) * w.stride >= size + w.pad_begin ? count - 1 : count;
}

std::vector<Value> infer(const Graph& graph, const std::vector<Sizes>& input_sizes) {
  TORCH_CHECK(input_sizes.size() == graph.inputs.size(), "cnnfast: the network takes ", graph.inputs.size(),
              " inputs, not ", input_sizes.size());
  return Inference(graph, input_sizes).all();
}

std::vector<int64_t> signature_of(const Graph& graph) {
  std::vector<int64_t> words;
  if (graph.results == Storage::kBFloat16) words.push_back(kHalfOutputs);
  for (const int64_t output : graph.outputs) append_output(graph, output, words);
  return words;
}

std::vector<std::vector<c10::SymInt>> sizes_from_signature(
    at::IntArrayRef s, const std::vector<c10::SymIntArrayRef>& input_sizes) {
  std::vector<std::vector<c10::SymInt>> outputs;
  for (size_t at = !s.empty() && s[0] == kHalfOutputs; at < s.size();) {
    TORCH_CHECK(s.size() - at >= 7 && s[at + 1] >= 0 && s[at + 1] < static_cast<int64_t>(input_sizes.size()),
                "cnnfast::run_plan: signature is damaged: use plan_signature(weights, plan)");
    const int64_t rank = s[at], windows = s[at + 6];
    const auto input = input_sizes[s[at + 1]];
    const bool reshaped = s[at + 3] >= 0;
    TORCH_CHECK(reshaped || input.size() == 4 || input.size() == 3 || windows == -1,
                "cnnfast::run_plan: the network takes images, not shape ", input);
    c10::SymInt images = input.empty() ? c10::SymInt(1) : input[0];
    c10::SymInt channels = s[at + 2] >= 0 ? c10::SymInt(s[at + 2]) : input[1], height = 1, width = 1;
    if (reshaped) {
      c10::SymInt numel = 1;
      for (const auto& size : input) numel = numel * size;
      images = numel / (s[at + 3] * s[at + 4] * s[at + 5]);
    }
    if (windows >= 0) {
      height = reshaped ? c10::SymInt(s[at + 4]) : input.size() == 3 ? c10::SymInt(1) : input[2];
      width = reshaped ? c10::SymInt(s[at + 5]) : input[input.size() - 1];
    }
    at += 7;
    TORCH_CHECK(static_cast<int64_t>(s.size() - at) >= 10 * windows,
                "cnnfast::run_plan: signature is damaged: use plan_signature(weights, plan)");
    for (int64_t i = 0; i < windows; ++i, at += 10) {
      height = window_count(height, {s[at], s[at + 1], s[at + 2], s[at + 3], s[at + 4]});
      width = window_count(width, {s[at + 5], s[at + 6], s[at + 7], s[at + 8], s[at + 9]});
    }
    if (rank == 4)
      outputs.push_back({images, channels, height, width});
    else if (rank == 3)
      outputs.push_back({images, channels, width});
    else
      outputs.push_back({images, channels * height * width});
  }
  return outputs;
}

}  // namespace cnnfast::plan
