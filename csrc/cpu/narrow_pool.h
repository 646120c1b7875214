// Pooling of bfloat16 images by the float32 kernels: strips of rows are widened in cache, results rounded.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

using PoolKernel = void (*)(const PoolCall&, int64_t, int64_t);
using PoolBackwardKernel = void (*)(const PoolBackwardCall&, int64_t, int64_t);

// Views whose pixels have adjacent channels. The call's own views do not count.
struct NarrowPool {
  PoolCall call;
  View16 input, output;

  // Output rows [begin, end) over all images.
  void run(PoolKernel kernel, int64_t begin, int64_t end) const;
};

struct NarrowPoolBackward {
  PoolCall call;
  View16 input;  // data is null where the kernel does not read it
  View16 grad, grad_input;

  // Input rows [begin, end) over all images.
  void run(PoolBackwardKernel kernel, int64_t begin, int64_t end) const;
};

}  // namespace cnnfast::cpu
