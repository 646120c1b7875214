// Sums per channel over the pixels of an NHWC slice, the same for any number of threads.
#pragma once
#include <cstdint>
#include <vector>

namespace cnnfast::cpu {

// Rows summed in float32 before they join a float64 sum: few enough to keep the error of plain summation
// small. The parts are the same for any number of threads, so results do not depend on it.
constexpr int64_t kRowsPerPart = 256;

// Sum over rows of x, or of (x - mean)^2, per channel; `stride` floats lie between two rows.
std::vector<double> channel_sums(const float* x, int64_t stride, int64_t rows, int64_t channels,
                                 const float* mean);

// The sums of float32 parts, `channels` each, that follow one another in memory.
std::vector<double> sum_of_parts(const std::vector<float>& partial, int64_t channels);

}  // namespace cnnfast::cpu
