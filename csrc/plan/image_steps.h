// Steps other than convolutions and windows of fixed size: products and sums of two values, means, channel
// shuffles, padding, interpolation, normalisation over channels.
#pragma once
#include "plan/steps.h"

namespace cnnfast::plan {

// The second operand of a product or sum: of the first one's shape, N x C x 1 x 1, or N x 1 x H x W.
enum class Repeated { kNot, kOverPixels, kOverChannels };
// act(a * b), act(a * b + c) or act(a + b).
std::unique_ptr<Step> binary_step(int64_t node, bool multiply, Repeated repeated,
                                  const Activation& activation, std::vector<Place> reads, Place to);
// The mean over each image; call: sizes and prologue.
std::unique_ptr<Step> mean_step(int64_t node, const cpu::PoolCall& call, Place from, Place to);
std::unique_ptr<Step> adaptive_pool_step(int64_t node, bool max, Place from, Place to);
// Output channel j * parts + i is channel j of part i.
std::unique_ptr<Step> shuffle_step(int64_t node, std::vector<Place> parts, Place to);
std::unique_ptr<Step> pad_step(int64_t node, int64_t top, int64_t left, float value, Place from, Place to);
// attributes: InterpolateAttr.
std::unique_ptr<Step> interpolate_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                       Place to);
// groups: 0 for layer norm over the channels of each pixel. weight and bias may be null; like all constants
// they must outlive the step.
std::unique_ptr<Step> norm_step(int64_t node, int64_t groups, const float* weight, const float* bias,
                                float eps, const Activation& activation, Place from, Place to);
std::unique_ptr<Step> prelu_step(int64_t node, const float* slope, Place from, Place to);

}  // namespace cnnfast::plan
