// The steps of a planned network. Every thread of the team runs its share of each step; a barrier stands
// between phases.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/conv_job.h"
#include "cpu/image.h"
#include "plan/shapes.h"
#include "plan/strips.h"

namespace cnnfast::plan {

// Tensors of a call, by position: of float32 values, or of bfloat16 ones.
struct External {
  const float* data;
  const uint16_t* data16;
  cpu::TensorStrides strides;  // inputs alone
};

// Where everything lies during one call.
struct Memory {
  std::vector<float*> buffers;
  std::vector<External> inputs;
};

// A value's place: a buffer of images with a border, and the value's first channel in it.
struct Place {
  int buffer = -1;
  int64_t channel = 0;
  cpu::ImageSize size{};  // of the value
  cpu::Border border{};   // of the buffer
  int64_t buffer_channels = 0;
  bool fills_border = false;  // the value's producer zeroes the border around its channels

  int64_t row() const { return (size.width + border.left + border.right) * buffer_channels; }
  int64_t image() const { return (size.height + border.top + border.bottom) * row(); }
  // Distances alone, no memory yet.
  cpu::View strides() const { return {nullptr, image(), row(), buffer_channels}; }
  // The first pixel inside the border, and its neighbours' distances.
  cpu::View view(const Memory& memory) const;
  // The same where the buffer holds bfloat16 values.
  cpu::View16 strides16() const { return {nullptr, image(), row(), buffer_channels}; }
  cpu::View16 view16(const Memory& memory) const;
};

std::string size_text(const cpu::ImageSize& size);

struct Constants {
  const float* data = nullptr;
  int64_t floats = 0;
};

class Step {
 public:
  Step(int64_t node, std::vector<Place> reads, Place writes)
      : node_(node), reads_(std::move(reads)), writes_(std::move(writes)) {}
  virtual ~Step() = default;
  void run(const Memory& memory, int thread, int team) const;

  int64_t node() const { return node_; }
  const std::vector<Place>& reads() const { return reads_; }
  const Place& writes() const { return writes_; }
  // Where a step computes several values, the others.
  const std::vector<Place>& also_writes() const { return also_writes_; }
  std::vector<Place> all_writes() const;
  virtual double flops() const { return 0; }
  virtual std::string text() const = 0;
  // Zeros around rows [begin, end) over all images that the step writes.
  virtual void fill_borders(const Memory& memory, int64_t begin, int64_t end) const;
  // The constants that a thread reads first.
  virtual Constants first_constants(int thread, int team) const {
    (void)thread, (void)team;
    return {};
  }

 protected:
  virtual void compute(const Memory& memory, int thread, int team) const = 0;
  // Rows of the output that this thread takes.
  std::pair<int64_t, int64_t> rows(int thread, int team) const;

  int64_t node_;
  std::vector<Place> reads_;
  Place writes_;
  std::vector<Place> also_writes_;
};

// Rows of an operand that output rows [begin, end) of the same image need: from begin * stride - before on,
// `extent` for each, cut at the image's ends.
struct RowWindow {
  int64_t stride, before, extent;
};

// A step whose output rows can be computed by themselves.
class RowStep : public Step {
 public:
  using Step::Step;
  // Output rows [begin, end) over all images.
  virtual void compute_rows(const Memory& memory, int64_t begin, int64_t end) const = 0;
  // None: all rows of the image. The default goes by the operand's height.
  virtual std::optional<RowWindow> window_of(size_t operand) const;
  // Rows are computed so many at a time from an image's first on.
  virtual int64_t rows_together() const { return 1; }
  // Of what is read again for every part of the rows that is computed by itself.
  virtual int64_t constant_bytes() const { return 0; }
  // Whether threads rather share the constants than the rows.
  virtual bool shares_constants() const { return false; }
  // Whether parts of the rows may be computed between other steps' (plan/step_group.h).
  virtual bool joins_groups() const { return true; }
  // Where rows are computed from the first on, so many at a time, and rows of operand 0 in front of a row's
  // window are read no more: how many. 0: in no such order.
  virtual int64_t rows_in_turn() const { return 0; }

 protected:
  void compute(const Memory& memory, int thread, int team) const override;
};

// Constants of a convolution, packed for this CPU.
struct ConvConstants {
  cpu::AlignedFloats weight{0}, shift{0};
  bool short_pairs = false;  // weight: cpu/short_pairs.h
};

std::unique_ptr<Step> copy_in_step(int64_t node, size_t input, Place to);
std::unique_ptr<Step> copy_out_step(int64_t node, Place from, Place to, bool flatten);
std::unique_ptr<Step> conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                int64_t pad_left, std::shared_ptr<const ConvConstants> constants, Place from,
                                Place to, const Place* residual, const cpu::Prologue& prologue);
// Convolutions of the same pixels, direct, of one group and kernel size 1: a block of pixels passes through
// all of them while it is in cache.
struct Sibling {
  cpu::ConvGeometry geometry;
  std::shared_ptr<const ConvConstants> constants;
  Place to;
};
std::unique_ptr<Step> sibling_step(int64_t node, Place from, std::vector<Sibling> siblings);
// A pooling and the 1x1 convolution behind it, strip by strip of the pooled rows.
std::unique_ptr<Step> pool_conv_step(int64_t node, bool max, cpu::PoolCall pool,
                                     const cpu::ConvGeometry& geometry,
                                     std::shared_ptr<const ConvConstants> constants, Place from, Place to);
// act(x * scale + shift) with constants that outlive the step; without them the scale is a value, one number
// per image and channel.
struct Scaling {
  Activation activation;
  const float* scale;
  const float* shift;
  bool per_image() const { return scale == nullptr && shift == nullptr; }
};
// A scaling and the 1x1 convolution behind it. reads: what is scaled, the scale where it is a value, and a
// residual or nothing.
std::unique_ptr<Step> scale_conv_step(int64_t node, const Scaling& scaling, const cpu::ConvGeometry& geometry,
                                      std::shared_ptr<const ConvConstants> constants,
                                      std::vector<Place> reads, Place to);
// A direct convolution of one group and the depthwise one behind it, strip by strip of the rows between them.
struct ExpansionPart {
  cpu::ConvGeometry geometry;
  int64_t pad_top, pad_left;
  std::shared_ptr<const ConvConstants> constants;
};
// sums: null, or where each strip's sums over its pixels go, a row of the image for a strip.
std::unique_ptr<Step> expansion_step(int64_t node, const ExpansionPart& expand,
                                     const ExpansionPart& depthwise, Place from, Place to, const Place* sums);
// The same with the 1x1 convolution behind it. reads: the first one's input, then a residual or nothing.
std::unique_ptr<Step> inverted_residual_step(int64_t node, const ExpansionPart& expand,
                                             const ExpansionPart& depthwise, const ExpansionPart& project,
                                             std::vector<Place> reads, Place to);
int64_t expansion_strips(const ExpansionPart& expand, const ExpansionPart& depthwise);
std::unique_ptr<Step> pool_step(int64_t node, bool max, cpu::PoolCall call, Place from, Place to);
// size, alpha, beta, k of local response normalisation.
struct LrnParams {
  int64_t size;
  double alpha, beta, k;
};
LrnParams lrn_params_of(const Node& node);
// A convolution without residual and the pooling behind it, with a local response normalisation between them
// where `norm` is given; `to` is the pooling's place.
std::unique_ptr<Step> conv_pool_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                     int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                     std::vector<Strip> strips, const LrnParams* norm, bool max,
                                     const cpu::PoolCall& pool, Place from, Place to);
std::string conv_text(const cpu::ConvGeometry& g);
std::string pool_text(bool max, const cpu::PoolCall& pool);
// A convolution's numbers, for direct computation.
cpu::ConvGeometry conv_geometry_of(const Node& node, const Value& input, const Value& output);
// The window of a pooling as the kernels take it, without memory.
cpu::PoolCall pool_call(const WindowPair& window, int64_t dilation_h, int64_t dilation_w,
                        bool count_include_pad, int64_t divisor_override, const cpu::ImageSize& from,
                        const cpu::ImageSize& to);
// Output rows [begin, end) of a pooling over all images.
void pool_rows(bool max, const cpu::PoolCall& call, int64_t begin, int64_t end);
std::unique_ptr<Step> lrn_step(int64_t node, const LrnParams& params, Place from, Place to);
// act(x * scale + shift + other); scale and shift may be null (they must outlive the step), other absent.
std::unique_ptr<Step> affine_step(int64_t node, const float* scale, const float* shift, Activation activation,
                                  Place from, Place to, const Place* other);

}  // namespace cnnfast::plan
