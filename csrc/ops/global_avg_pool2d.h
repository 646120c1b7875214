// global_avg_pool2d: the mean of every channel of every image.
#pragma once
#include "ops/common.h"

namespace cnnfast {

// The output's sizes.
std::vector<c10::SymInt> check_global_avg_pool2d(const at::Tensor& input);

at::Tensor global_avg_pool2d_composite(const at::Tensor& input);

}  // namespace cnnfast
