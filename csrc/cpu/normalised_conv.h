// A convolution whose input is normalised and activated on the way into the memory it is read from.
#pragma once
#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/image.h"

namespace cnnfast::cpu {

// output = conv(act(input * scale + shift), weight) with `border` zeros around the activated images, and the
// epilogue of `packed`. Both views may be slices of a concatenation; they may lie in the same pixels as long
// as their channels differ. Images go through scratch memory a few at a time, so that it stays in cache.
void normalised_conv(const ConvGeometry& geometry, View input, ImageSize size, Border border,
                     const InputPrologue& prologue, const PackedConv& packed, View output);

// Image rows [row_begin, row_end) (over all images) from `source` to `target`, normalised and activated.
void normalise_rows(const InputPrologue& prologue, View source, ImageSize size, View target,
                    int64_t row_begin, int64_t row_end);

}  // namespace cnnfast::cpu
