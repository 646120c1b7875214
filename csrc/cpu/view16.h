// Images of bfloat16 values in memory.
#pragma once
#include <stdint.h>

namespace cnnfast::cpu {

// As View (kernel_table.h); strides are counted in values of 2 bytes.
struct View16 {
  uint16_t* data;
  int64_t image, row, pixel;
};

}  // namespace cnnfast::cpu
