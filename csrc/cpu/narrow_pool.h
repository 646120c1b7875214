// Pooling of bfloat16 images in float32: strips of rows stay in cache, results are rounded.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

// Views whose pixels have adjacent channels. The call's own views do not count.
struct NarrowPool {
  PoolCall call;
  View16 input, output;
};

struct NarrowPoolBackward {
  PoolCall call;
  View16 input;  // of max pooling; data is null for average pooling
  View16 grad, grad_input;

  // Input rows [begin, end) over all images.
  void run(int64_t begin, int64_t end) const;

 private:
  // Of one image.
  void max_strip(int64_t image, int64_t begin, int64_t end) const;
  void mean_strip(int64_t image, int64_t begin, int64_t end) const;
};

}  // namespace cnnfast::cpu
