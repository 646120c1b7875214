// A convolution of bfloat16 values made ready for the kernels that multiply packed pairs: as ConvJob.
#pragma once
#include <vector>

#include "cpu/bf16_table.h"
#include "cpu/conv_job.h"

namespace cnnfast::cpu {

// Values of 2 bytes in memory for floats.
inline uint16_t* values16(AlignedFloats& memory) { return reinterpret_cast<uint16_t*>(memory.data()); }
inline const uint16_t* values16(const AlignedFloats& memory) {
  return reinterpret_cast<const uint16_t*>(memory.data());
}

// Weights rounded to bfloat16, as pairs in the order of bf16_table.h, group by group.
AlignedFloats pack_pairs(const ConvGeometry& g, const float* weight, const WeightStrides& strides);
// Into memory of so many bytes.
void pack_pairs_into(const ConvGeometry& g, const float* weight, const WeightStrides& strides, uint16_t* to);
int64_t pairs_bytes(const ConvGeometry& g);
// One value per output channel, padded to whole panels for every group; null stays empty.
AlignedFloats pack_panels(const ConvGeometry& g, const float* values);

// One run's memory. input: the first tap of the first output pixel; readable, beyond: what may be read around
// it.
struct Conv16Memory {
  const uint16_t *input, *readable, *beyond;
  uint16_t* output;
  const uint16_t* residual;  // or null
  // Of a job whose prologue has one scale per image and channel: in_channels of them for every image.
  const float* image_scale = nullptr;
};

// As pack_pairs gives them, or shorten_pairs (short_pairs.h).
enum class PairForm { kWhole, kShort };

class Conv16Job {
 public:
  // Strides alone count in the views. The input has its padding around it. prologue: scale, shift and
  // activation count; for kernels of one pixel. interleaves: as Conv16Call's.
  Conv16Job(const ConvGeometry& geometry, View16 input, View16 output, View16 residual,
            const Prologue& prologue = {}, PairForm form = PairForm::kWhole, bool interleaves = false);
  // The share of `thread` out of `team`.
  void run(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& memory, int thread,
           int team) const;
  // Output pixels [begin, end) over all images, by the calling thread.
  void run_pixels(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& memory,
                  int64_t begin, int64_t end) const;
  // Threads share channels rather than pixels: weights outweigh those.
  bool split_by_channels(int team) const;
  const ConvGeometry& geometry() const { return g_; }

 private:
  void run_part(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& memory,
                std::pair<int64_t, int64_t> pixels, std::pair<int64_t, int64_t> units) const;
  std::vector<int64_t> taps(int64_t columns) const;

  ConvGeometry g_;
  View16 input_, output_, residual_;
  Prologue prologue_;
  PairForm form_;
  bool interleaves_;
  int64_t panels_;       // of one group
  int64_t near_pixels_;  // of a block that is read where it lies
  std::vector<int64_t> tap_, tile_tap_;
  int64_t length_, tile_length_;
};

// The kernels' own state of a thread, for as long as it lives: AMX tiles are configured once per run.
class TileUse {
 public:
  explicit TileUse(bool half) : kernels_(half ? &bf16_kernels() : nullptr) {
    if (kernels_ && kernels_->begin_thread) kernels_->begin_thread();
  }
  ~TileUse() {
    if (kernels_ && kernels_->end_thread) kernels_->end_thread();
  }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;

 private:
  const Bf16Kernels* kernels_;
};

}  // namespace cnnfast::cpu
