// A convolution of bfloat16 values made ready for Winograd's algorithm with products of whole numbers
// (cpu/fixed_winograd.h): as Conv16Job.
#pragma once
#include "cpu/bf16_table.h"
#include "cpu/conv_job.h"

namespace cnnfast::cpu {

// Whether the active instruction set has the kernels.
inline bool has_fixed_winograd() { return bf16_kernels().fixed_winograd != nullptr; }

// Transformed weights as whole numbers, then their scales, group by group; not rounded to bfloat16 before.
AlignedFloats pack_fixed(const ConvGeometry& g, const float* weight, WeightStrides strides);
int64_t fixed_floats(const ConvGeometry& g);

// Padding above and to the left of an image.
struct FixedPadding {
  int64_t top, left, in_height, in_width;
};

// One run's memory: the first pixels of the first image. residual: or null.
struct FixedMemory {
  const uint16_t* input;
  uint16_t* output;
  const uint16_t* residual;
};

// Rows [begin, end) of the output of images [first, first + images); the output's memory begins with row
// `begin` of the first of them.
struct FixedRows {
  int64_t first, images, begin, end;
};

class FixedConvJob {
 public:
  // Strides alone count in the views. prologue: scale, shift and activation count.
  FixedConvJob(const ConvGeometry& geometry, const FixedPadding& padding, View16 input, View16 output,
               View16 residual, const Prologue& prologue);
  // The share of `thread` out of `team`.
  void run(const AlignedFloats& weight, const AlignedFloats& shift, const FixedMemory& memory, int thread,
           int team) const;
  // By the calling thread alone; tiles begin at the rows' first. Without a residual where these are not all.
  void run_rows(const AlignedFloats& weight, const AlignedFloats& shift, const FixedMemory& memory,
                const FixedRows& rows) const;
  // Threads share channels rather than tiles: weights outweigh those.
  bool split_by_channels(int team) const;
  const ConvGeometry& geometry() const { return g_; }

 private:
  struct Share {
    int64_t begin, end;
  };
  int64_t tiles_of(int64_t images, int64_t rows) const;
  void run_part(const AlignedFloats& weight, const AlignedFloats& shift, const FixedMemory& memory,
                const FixedRows& rows, Share tiles, Share units) const;

  ConvGeometry g_;
  FixedPadding padding_;
  View16 input_, output_, residual_;
  Prologue prologue_;
  Panels panels_;
};

}  // namespace cnnfast::cpu
