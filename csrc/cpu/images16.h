// Tensors of bfloat16 as images for the kernels that multiply pairs.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/image.h"

namespace cnnfast::cpu {

uint16_t* bits_of(const at::Tensor& t);

// Of a tensor whose channels are adjacent.
View16 view16_of(const at::Tensor& t);

// Images with zeros around them, and the memory that may be read.
struct Images16 {
  View16 view;  // of the first pixel, which may be one of the border
  const uint16_t *readable, *beyond;
  at::Tensor storage;
};

// The tensor itself where there is no border and channels are adjacent, else a copy.
Images16 bring_in16(const at::Tensor& t, const Border& border);

}  // namespace cnnfast::cpu
