// Steps that gates and attention over channels or pixels are made of.
#pragma once
#include "plan/steps.h"

namespace cnnfast::plan {

// The largest channel of each pixel.
std::unique_ptr<Step> channel_max_step(int64_t node, Place from, Place to);
// Per image and channel the 2-norm over all pixels.
std::unique_ptr<Step> image_norm_step(int64_t node, Place from, Place to);
// A filter that slides along the channels of images of one pixel, with zeros beyond their ends. weight:
// `taps` numbers, an odd number of them; bias: one or null. Both must outlive the step.
std::unique_ptr<Step> channel_conv_step(int64_t node, const float* weight, int64_t taps, const float* bias,
                                        Place from, Place to);
std::unique_ptr<Step> power_step(int64_t node, double exponent, Place from, Place to);
// Over the channels of each pixel, or the logarithm of that.
std::unique_ptr<Step> softmax_step(int64_t node, bool logarithm, Place from, Place to);
// Per image the mean over its pixels, weighted by the softmax of `logits` (N x 1 x H x W).
std::unique_ptr<Step> attention_pool_step(int64_t node, Place from, Place logits, Place to);

}  // namespace cnnfast::plan
