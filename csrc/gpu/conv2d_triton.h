// The convolution by a Triton kernel that was compiled ahead of time, with what may come before and behind
// it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "gpu/triton/kernels.h"
#include "ops/conv2d.h"

namespace cnnfast::gpu {

constexpr size_t kMostTimed = 3;  // kernels to be timed at the first call with a shape

// Batch norm and activation on the way in: input * scale[c] + shift[c], float32, then ReLU or nothing.
// Padding is 0 behind it.
struct Prologue {
  at::Tensor scale, shift;
  bool relu;
};

struct TritonConv2d {
  const Conv2dArgs& conv;
  const Prologue* prologue = nullptr;  // what stands in its tensors is of no matter to a search
  bool statistics = false;             // of what is stored
};

// The kernels that serve the call, best first by a model of clocks, or none and the reason in words.
std::vector<Kernel> find_triton_conv2d(const TritonConv2d& call, at::IntArrayRef output_sizes,
                                       std::string* reason);

// Means, and sums of squares around them, of parts of the pixels: float32, parts x 2 x channels.
struct Parts {
  at::Tensor sums;
  int64_t part_pixels, pixels;
};

// Into channels_last memory or a slice of channels; nothing where the kernel cannot write there. An absent
// bias is passed as zeros, an absent scale as ones, where the kernel has no version without. DriverError
// where the code does not load or the launch fails.
std::optional<Parts> run_triton_conv2d(const Kernel& kernel, const TritonConv2d& call,
                                       const at::Tensor& output);

}  // namespace cnnfast::gpu
