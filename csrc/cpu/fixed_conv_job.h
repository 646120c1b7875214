// A convolution of bfloat16 values made ready for Winograd's algorithm with products of whole numbers
// (cpu/fixed_winograd.h): as Conv16Job.
#pragma once
#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

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
  void run(const float* weight, const AlignedFloats& shift, const FixedMemory& memory, int thread,
           int team) const;
  // By the calling thread alone; tiles begin at the rows' first. Without a residual where these are not all.
  void run_rows(const float* weight, const AlignedFloats& shift, const FixedMemory& memory,
                const FixedRows& rows) const;
  // Threads share channels rather than tiles: weights outweigh those.
  bool split_by_channels(int team) const;
  const ConvGeometry& geometry() const { return g_; }

 private:
  struct Share {
    int64_t begin, end;
  };
  int64_t tiles_of(int64_t images, int64_t rows) const;
  void run_part(const float* weight, const AlignedFloats& shift, const FixedMemory& memory,
                const FixedRows& rows, Share tiles, Share units) const;

  ConvGeometry g_;
  FixedPadding padding_;
  View16 input_, output_, residual_;
  Prologue prologue_;
  Panels panels_;
};

}  // namespace cnnfast::cpu
