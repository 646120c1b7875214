// Convolutions that can write a slice of the channels of a larger image. csrc/gpu provides them; the blocks
// of csrc/cuda ask them first.
#pragma once
#include "ops/bn_act_conv2d.h"

namespace cnnfast {

// Each writes its operator's result into `output` and returns true, or does nothing and returns false.
struct SliceConvs {
  bool (*conv2d)(const Conv2dArgs& args, const at::Tensor& output);
  // Statistics are given.
  bool (*bn_act_conv2d)(const BnActConv2dArgs& args, double eps, const at::Tensor& output);
};

// Of this process; empty (nullptr) at first. Filled while the library is loaded.
SliceConvs& slice_convs();

}  // namespace cnnfast
