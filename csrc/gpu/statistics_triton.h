// Mean and variance of every channel from those of parts of the pixels, by Triton kernels.
#pragma once
#include <string>
#include <tuple>

#include "gpu/conv2d_triton.h"

namespace cnnfast::gpu {

struct StatisticsKernels {
  Kernel inner, last;  // of the tree that joins parts
};

// Nothing and the reason where this build has none for the device.
bool find_statistics_kernels(const at::Tensor& like, StatisticsKernels* found, std::string* reason);

// Mean and biased variance, float32, channels.
std::tuple<at::Tensor, at::Tensor> join_parts(const StatisticsKernels& kernels, const Parts& parts);

}  // namespace cnnfast::gpu
