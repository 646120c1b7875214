// A frozen network as data: what cnnfast::run_plan is given.
//
// Words of `plan` (int64): [0] magic, [1] format version, [2] checksum of the words from [3] on, [3] checksum
// of the constants, [4] number of constants (floats), [5] number of nodes, [6] number of outputs, then nodes,
// then output ids. A node is [op, activation, its two numbers, n_inputs, ids..., n_attributes,
// attributes...]; ids count nodes in order, inputs come first. An offset counts floats in the constants, -1:
// absent. A fraction is the bits of a float64; the activation's numbers are fractions. Format 3, which is
// read too, has no such numbers. Format 5 has two more words in front of the nodes: how values are stored
// between nodes, and what the outputs are; in the others both are float32. Format 6 has padding that follows
// from the size of the image (kSamePadding), and the operations from kChannelMax on. Format 7 has lines,
// tensors N x C x L: an input of rank 3 is an image of one row within, and kToLine gives one of those as a
// line again.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "activation.h"

namespace cnnfast::plan {

constexpr int64_t kMagic = 0x434E4E46;
constexpr int64_t kFormatVersion = 7, kOldestFormat = 3;

// Padding of a window, written on every side: just enough for ceil(size / stride) positions, the odd one at
// the end. TensorFlow's "SAME".
constexpr int64_t kSamePadding = -1;

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
  kAdd = 8,  // inputs of one shape, or the second N x C x 1 x 1, or N x 1 x H x W
  kConcat = 9,
  kGlobalAvgPool = 10,
  kAffine = 11,             // scale, shift, channels
  kLocalResponseNorm = 12,  // size, alpha, beta, k; the last three are fractions
  kMultiply = 13,           // inputs x, factor (as that of a sum), and what is added then
  kSlice = 14,              // first channel, count: a view
  kChannelShuffle = 15,     // groups
  kAdaptiveAvgPool2d = 16,  // height, width (0: those of the input)
  kAdaptiveMaxPool2d = 17,
  kPad = 18,          // top, left, bottom, right, value (fraction); with a second input: to its size, evenly
  kInterpolate = 19,  // InterpolateAttr; inputs x, or x and an image of the wanted size
  kLayerNorm = 20,    // over channels: weight, bias, channels, eps (fraction)
  kGroupNorm = 21,    // weight, bias, channels, groups, eps (fraction)
  kPReLU = 22,        // slope, channels
  kToImage = 23,      // features become images of one pixel: a view
  kChannelMax = 24,   // the largest channel of each pixel
  kImageNorm = 25,    // per channel the 2-norm over the image
  kChannelConv = 26,  // weight, taps (odd), bias; over the channels of one pixel, zeros beyond its ends
  kPower = 27,        // exponent (fraction)
  kAttentionPool = 28,  // inputs x and N x 1 x H x W: the mean over pixels weighted by the latter's softmax
  kCrop =
      29,  // top, left, bottom, right: rows and columns left out; then every stride_h, stride_w -th is kept
  // block h, w, blocks_first, top, left, bottom, right: channels become blocks of pixels, then rows and
  // columns are left out. Channels are ordered by place in the block first, or by channel first.
  kDepthToSpace = 30,
  kMirrorPad = 31,  // top, left, bottom, right, MirrorMode
  kSoftmax = 32,    // over the channels of each pixel; 1: its logarithm
  kToLine = 33,     // images of one row become lines: a view, and an output
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

// Positions in an interpolation's attributes. A size is 0 where it follows from a scale or from the second
// input; a scale is a fraction, 0 where there is none.
struct InterpolateAttr {
  enum : size_t { kMode, kAlignCorners, kHeight, kWidth, kScaleH, kScaleW, kCount };
};
// What lies beyond the edge: the image mirrored at its outermost pixels, these pixels, or the opposite edge.
enum class MirrorMode : int64_t { kReflect = 0, kReplicate = 1, kCircular = 2 };
enum class InterpolateMode : int64_t { kNearest = 0, kNearestExact = 1, kBilinear = 2 };

struct Node {
  Op op;
  Activation activation;
  std::vector<int64_t> inputs;
  std::vector<int64_t> attr;
};

enum class Storage : int64_t { kFloat32 = 0, kBFloat16 = 1 };

struct Graph {
  Storage values = Storage::kFloat32;   // of all that lies in the arena
  Storage results = Storage::kFloat32;  // of the output tensors
  bool half() const { return values == Storage::kBFloat16; }
  std::vector<Node> nodes;
  std::vector<int64_t> outputs;
  std::vector<int64_t> inputs;  // nodes that are inputs, in order
};

// "node 3 (conv2d)"
std::string name_of(const Graph& graph, int64_t node);
const char* op_name(Op op);
// Whether a node has no memory of its own: it looks at its input's.
bool is_view(Op op);

// The float64 whose bits a word holds.
double fraction(int64_t word);

// A 64-bit hash of bytes.
int64_t checksum(const void* data, size_t bytes);

// Reads and checks everything that does not depend on input sizes; errors say what is wrong with the file.
Graph parse(const at::Tensor& weights, const at::Tensor& plan);

}  // namespace cnnfast::plan
