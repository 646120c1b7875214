// Steps of plans whose values are bfloat16: every value lies in the arena rounded once, and is computed in
// float32.
#pragma once
#include "plan/image_steps.h"
#include "plan/steps.h"

namespace cnnfast::plan {

// Whether a convolution multiplies packed bfloat16 pairs; otherwise strips of its input are widened for the
// float32 kernels.
bool takes_pairs(const cpu::ConvGeometry& geometry);

// Zeros around a value's rows [begin, end) over all images, where its producer has to see to them.
void fill_border16(const Place& place, const Memory& memory, int64_t begin, int64_t end);

// A step that writes bfloat16 values.
template <class Base>
class Writes16 : public Base {
 public:
  using Base::Base;
  void fill_borders(const Memory& memory, int64_t begin, int64_t end) const override {
    fill_border16(this->writes_, memory, begin, end);
  }
};

// What a step reads: `first`, and `second` where there is one.
inline std::vector<Place> with_optional(Place first, const Place* second) {
  std::vector<Place> places{std::move(first)};
  if (second) places.push_back(*second);
  return places;
}

std::unique_ptr<Step> copy_in16_step(int64_t node, size_t input, Place to);
// Within the arena.
std::unique_ptr<Step> copy16_step(int64_t node, Place from, Place to);
// Into an output tensor, of float32 or bfloat16 values.
std::unique_ptr<Step> copy_out16_step(int64_t node, Place from, Place to, bool flatten, bool to_float);
// What a convolution of pairs does beside it. prologue: as Conv16Job's; with factors, one per image and input
// channel, its activation alone counts. interleaves: the residual is not added, but its channels are written
// in turn with the result's.
struct PairConvExtras {
  std::optional<Place> residual;
  cpu::Prologue prologue{};
  std::optional<Place> factors;
  bool interleaves = false;
};
// constants: packed pairs.
std::unique_ptr<Step> pair_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                     int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                     Place from, Place to, PairConvExtras extras);
// The same of a depthwise convolution, or one in groups of a few channels (cpu/depthwise16_pack.h).
std::unique_ptr<Step> depthwise16_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                       int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                       Place from, Place to, const Place* residual);

// A pooling behind a convolution, with a local response normalisation between them where there is one.
struct PoolBehind {
  std::vector<Strip> strips;
  std::optional<LrnParams> norm;
  bool max;
  cpu::PoolCall pool;
};
// constants: as those of conv_step. `to` is the pooling's place where there is one. Of a prologue, scale,
// shift and activation count.
std::unique_ptr<Step> widened_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                        int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                        Place from, Place to, const Place* residual,
                                        const cpu::Prologue& prologue, std::optional<PoolBehind> behind);
// The same by products of whole numbers; a pooling behind is a max pooling without a norm.
std::unique_ptr<Step> fixed_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                      int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                      Place from, Place to, const Place* residual,
                                      const cpu::Prologue& prologue, std::optional<PoolBehind> behind);
// Siblings (1x1 convolutions of one value, one of them at least) by the float32 kernels; `pool` is a max
// pooling on the way into them.
std::unique_ptr<Step> widened_pixels_step(int64_t node, Place from, std::optional<cpu::PoolCall> pool,
                                          std::vector<Sibling> siblings);
// Output rows [begin, end) over all images, by the calling thread.
void max_pool16(const cpu::PoolCall& window, const cpu::View16& from, const cpu::View16& to, int64_t begin,
                int64_t end);
// Without a prologue.
std::unique_ptr<Step> max_pool16_step(int64_t node, const cpu::PoolCall& window, Place from, Place to);
// The window's prologue has an activation of Affine16Call's.
std::unique_ptr<Step> avg_pool16_step(int64_t node, const cpu::PoolCall& window, Place from, Place to);
std::unique_ptr<Step> mean16_step(int64_t node, const cpu::PoolCall& call, Place from, Place to);
// binary_step without widened copies, for some of its forms.
bool takes_binary16(bool multiply, Repeated repeated, const Activation& activation);
std::unique_ptr<Step> binary16_step(int64_t node, bool multiply, Repeated repeated,
                                    const Activation& activation, std::vector<Place> reads, Place to);
// Any step that computes rows: strip by strip, on widened copies of its operands.
std::unique_ptr<Step> widened_step(std::unique_ptr<RowStep> step);

}  // namespace cnnfast::plan
