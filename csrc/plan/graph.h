// A frozen network as data: what cnnfast::run_plan is given.
//
// Words of `plan` (int64): [0] magic, [1] format version, [2] checksum of the words from [3] on, [3] checksum
// of the constants, [4] number of constants (floats), [5] number of nodes, [6] number of outputs, then nodes,
// then output ids. A node is [op, activation, n_inputs, ids..., n_attributes, attributes...]; ids count nodes
// in order, inputs come first. An offset counts floats in the constants, -1: absent.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "activation.h"

namespace cnnfast::plan {

constexpr int64_t kMagic = 0x434E4E46;
constexpr int64_t kFormatVersion = 3;

enum class Op : int64_t {
  kInput = 0,      // rank, channels or features (-1: any)
  kConv2d = 1,     // Conv2dAttr; inputs x, or x and a residual
  kLinear = 2,     // weight, out features, in features, bias
  kMaxPool2d = 3,  // kernel h, w, stride h, w, padding h, w, dilation h, w, ceil_mode
  kAvgPool2d =
      4,  // kernel h, w, stride h, w, padding h, w, ceil_mode, count_include_pad, divisor_override (0: none)
  kFlatten = 5,
  kReshapeImage = 6,  // C, H, W; directly behind an input
  kActivation = 7,
  kAdd = 8,
  kConcat = 9,
  kGlobalAvgPool = 10,
  kAffine = 11,             // scale, shift, channels
  kLocalResponseNorm = 12,  // size, alpha, beta, k; the last three are the bits of a float64
};

// Positions in a convolution's attributes.
struct Conv2dAttr {
  enum : size_t {
    kWeight,
    kOut,
    kIn,
    kKernelH,
    kKernelW,
    kBias,
    kStrideH,
    kStrideW,
    kPadTop,
    kPadLeft,
    kPadBottom,
    kPadRight,
    kDilationH,
    kDilationW,
    kGroups,
    kLargestTile,  // of Winograd's algorithm; 0: direct convolution alone
    kTuned,        // 1: measured times choose the algorithm where there are some (plan/tuning.h)
    kCount
  };
};

struct Node {
  Op op;
  Activation activation;
  std::vector<int64_t> inputs;
  std::vector<int64_t> attr;
};

struct Graph {
  std::vector<Node> nodes;
  std::vector<int64_t> outputs;
  std::vector<int64_t> inputs;  // nodes that are inputs, in order
};

// "node 3 (conv2d)"
std::string name_of(const Graph& graph, int64_t node);
const char* op_name(Op op);

// The float64 whose bits a word holds.
double fraction(int64_t word);

// A 64-bit hash of bytes.
int64_t checksum(const void* data, size_t bytes);

// Reads and checks everything that does not depend on input sizes; errors say what is wrong with the file.
Graph parse(const at::Tensor& weights, const at::Tensor& plan);

}  // namespace cnnfast::plan
