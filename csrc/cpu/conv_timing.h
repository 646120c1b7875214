// How long a convolution takes, measured.
#pragma once
#include <vector>

#include "cpu/conv_job.h"

namespace cnnfast::cpu {

// Nanoseconds of the convolution by each algorithm, the least of several runs on all threads, on memory of
// its own with dense images. The algorithms take turns: a slow moment of the machine meets all of them, and
// the weights of each have been driven out of small caches by those of the others, as happens in a network.
std::vector<int64_t> time_convolution(const ConvGeometry& geometry,
                                      const std::vector<ConvAlgorithm>& algorithms);

}  // namespace cnnfast::cpu
