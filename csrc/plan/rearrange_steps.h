// Steps that leave pixels out, repeat them beyond the edge, or make pixels of channels.
#pragma once
#include "plan/steps.h"

namespace cnnfast::plan {

// attributes: those of Op::kCrop.
std::unique_ptr<Step> crop_step(int64_t node, const std::vector<int64_t>& attributes, Place from, Place to);
// attributes: those of Op::kMirrorPad.
std::unique_ptr<Step> mirror_pad_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                      Place to);
// attributes: those of Op::kDepthToSpace.
std::unique_ptr<Step> depth_to_space_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                          Place to);

}  // namespace cnnfast::plan
