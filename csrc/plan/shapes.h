// Sizes of everything in a network, for given input sizes.
#pragma once
#include "ops/common.h"
#include "plan/graph.h"

namespace cnnfast::plan {

// What a node gives: images, features (rank 2; height and width are 1, or those of the images that were
// flattened), or lines (rank 3; images of one row).
struct Value {
  int64_t rank = 4;
  int64_t images = 0, channels = 0, height = 1, width = 1;
  int64_t features() const { return channels * height * width; }
  std::vector<int64_t> sizes() const;
  bool operator==(const Value&) const = default;
};

// Whether `other` has one number for each image and channel of x, or one for each pixel.
bool is_per_channel(const Value& x, const Value& other);
bool is_per_pixel(const Value& x, const Value& other);

// A window that slides along one side: convolution or pooling.
struct Window {
  int64_t pad_begin = 0, pad_end = 0, extent = 1, stride = 1, ceil_mode = 0;
  // Nodes whose output size does not come from a window are written as one, too.
  static constexpr int64_t kFixed = 2;  // ceil_mode: the output has `extent` positions
  static constexpr int64_t kScaled =
      3;  // ceil_mode: size * stride / extent, less what pad_begin and _end say
  // ceil_mode: ceil(size / stride) positions, size less pad_begin and pad_end; windows are padded as they
  // need it.
  static constexpr int64_t kSame = 4;
  // kSame as a window with padding, on a side of this size; others as they are.
  Window on(int64_t size) const;
  static Window fixed(int64_t size) { return {0, 0, size, 1, kFixed}; }
  static Window scaled(double scale);
};
struct WindowPair {
  Window height, width;
};

// The node's window; none for nodes that keep sizes, or take that of their second input.
std::optional<WindowPair> window_of(const Node& node);
c10::SymInt window_count(const c10::SymInt& size, const Window& window);
// The node's window over its input.
WindowPair window_on(const Node& node, const Value& input);
// The graph whose convolutions have their padding in numbers.
Graph with_sized_padding(Graph graph, const std::vector<Value>& values);

// One value per node; errors name the node and the sizes that do not fit.
std::vector<Value> infer(const Graph& graph, const std::vector<std::vector<int64_t>>& input_sizes);

// How output sizes follow from input sizes, as plain numbers. Per output: rank, number of the input,
// channels, sizes of the image that the input is reshaped to (3 numbers, -1: not reshaped), count of windows
// (-1: height and width are 1), and the windows (10 numbers each). In front of all stands kHalfOutputs where
// the outputs are bfloat16.
constexpr int64_t kHalfOutputs = -1;
std::vector<int64_t> signature_of(const Graph& graph);
std::vector<std::vector<c10::SymInt>> sizes_from_signature(
    at::IntArrayRef signature, const std::vector<c10::SymIntArrayRef>& input_sizes);

}  // namespace cnnfast::plan
