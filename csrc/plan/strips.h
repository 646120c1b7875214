// A convolution and the pooling behind it, a strip of rows at a time: what is pooled is still in cache.
#pragma once
#include <vector>

#include "cpu/conv_job.h"
#include "plan/shapes.h"

namespace cnnfast::plan {

// Rows [pool_begin, pool_end) of the pooled image, and the rows of the convolution that they need.
struct Strip {
  int64_t pool_begin, pool_end, row_begin, row_end;
  int64_t rows() const { return row_end - row_begin; }
};

// Cuts one image; `window` is the pooling's along the height, `geometry` the whole convolution's. The cut
// does not depend on the number of threads: where a strip begins decides how Winograd's tiles lie.
std::vector<Strip> cut_strips(const cpu::ConvGeometry& geometry, const Window& window, int64_t pool_height);

// How often rows are computed, on average: strips overlap, and reach over their last rows by parts of tiles.
double rows_repeated(const cpu::ConvGeometry& geometry, const std::vector<Strip>& strips);

// Rows below the image that the strips' convolutions read beyond those of a direct one.
int64_t strips_overreach(const cpu::ConvGeometry& geometry, const std::vector<Strip>& strips);

}  // namespace cnnfast::plan
