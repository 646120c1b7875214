// Average pooling and its gradient: as sums over boxes of pixels where all windows share one divisor, pixels
// lie side by side and a few of them are less than a block; else window by window.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/narrow_pool.h"

namespace cnnfast::cpu {

// Output rows [begin, end) of average pooling over all images.
void avg_pool_rows(const PoolCall& call, int64_t begin, int64_t end);
void avg_pool_rows(const NarrowPool& call, int64_t begin, int64_t end);
// Input rows of its gradient.
void avg_pool_backward_rows(const PoolBackwardCall& call, int64_t begin, int64_t end);
void avg_pool_backward_rows(const NarrowPoolBackward& call, int64_t begin, int64_t end);

}  // namespace cnnfast::cpu
