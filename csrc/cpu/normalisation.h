// Batch norm as numbers per channel, for kernels that normalise on their way.
#pragma once
#include <vector>

#include "cpu/conv_job.h"
#include "cpu/normalised_conv.h"
#include "ops/dense_block.h"

namespace cnnfast::cpu {

// Whether every tensor of the list that is present is float32.
bool all_float(const OptionalTensors& list);

// (x - mean) / sqrt(var + eps) * weight + bias as x * scale + shift. Absent weight: 1, absent bias: 0.
struct Normalisation {
  Normalisation(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps);
  InputPrologue prologue(Activation activation) const { return {scale.data(), shift.data(), activation}; }

  AlignedFloats scale, shift;
  at::Tensor mean;  // contiguous
  std::vector<double> inverse_std;
};

// Images in channels_last memory without gaps: rows of `channels` floats.
struct Pixels {
  explicit Pixels(const at::Tensor& t)
      : data(t.data_ptr<float>()), count(t.numel() / t.size(1)), channels(t.size(1)) {}
  float* data;
  int64_t count, channels;
};

}  // namespace cnnfast::cpu
