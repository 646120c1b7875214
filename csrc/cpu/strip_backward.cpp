#include "cpu/strip_backward.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/activation_rows.h"
#include "cpu/bf16_table.h"
#include "cpu/channel_sums.h"
#include "cpu/joined_pixels.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
#include "cpu/pixel_rows.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

// Every part of the pixels has its own sums, so that results do not depend on the number of threads. Sums and
// weights of these sizes stay in the second-level cache beside a strip.
constexpr int64_t kMostWeights = 96 * 1024;
constexpr int64_t kLeastPartPixels = 512, kLeastParts = 4, kMostParts = 32;
// A strip's gradients, inputs and results: so many floats each.
constexpr int64_t kStripFloats = 32 * 1024;
constexpr int64_t kLeastStripPixels = 64;
// Channels of a first layer's input: more are better served by Winograd's algorithm where it applies.
constexpr int64_t kMostFirstChannels = 4;

int64_t pixels_of(const at::Tensor& t) { return t.size(0) * t.size(2) * t.size(3); }

int64_t parts_of(int64_t pixels) {
  int64_t parts = 1;
  while (2 * parts <= std::min(kMostParts, pixels / kLeastPartPixels)) parts *= 2;
  return parts;
}

bool is_pointwise(const at::Tensor& weight, const Conv2dParams& p) {
  const auto all = [](at::IntArrayRef values, int64_t n) { return values[0] == n && values[1] == n; };
  return weight.size(2) == 1 && weight.size(3) == 1 && all(p.stride, 1) && all(p.padding, 0);
}

// A 1x1 convolution over `pixels` pixels in a row.
ConvGeometry pointwise_geometry(int64_t in, int64_t out, int64_t pixels) {
  return {1, in, out, 1, 1, 1, 1, 1, 1, 1, 1, pixels, {}};
}

// What gives the gradient of the convolution's output.
struct StripSource {
  PixelRows grad, output;  // not given: without an activation `output`, with a pooling `grad`
  Activation activation;
  const PooledRows* pooled = nullptr;
  int64_t unit = 1;    // pixels that are made together
  int64_t joined = 1;  // joined_pixels

  bool masks() const { return output.given(); }
  // Whether it is made in memory of the thread.
  bool makes() const { return pooled || masks() || grad.narrow; }
};

StripSource source_of(const at::Tensor& grad_output, const at::Tensor& output, Activation activation) {
  const bool masks = activation.kind != Activation::kNone;
  return {pixel_rows(grad_output), masks ? pixel_rows(output) : PixelRows{}, activation};
}
StripSource source_of(const PooledRows& rows) {
  return {PixelRows{}, rows.output(), {}, &rows, rows.rows_together() * rows.size().width};
}

class StripBackward {
 public:
  // `like`: of the output's sizes.
  StripBackward(StripSource source, const at::Tensor& like, const at::Tensor& input, const at::Tensor& weight,
                const Conv2dParams& params, WantedConvGradients wanted)
      : source_(std::move(source)),
        weight_(weight),
        wanted_(wanted),
        in_(weight.size(1)),
        out_(like.size(1)),
        row_(like.size(3)),
        units_(pixels_of(like) / source_.unit),
        parts_(std::min(parts_of(pixels_of(like)), units_)),
        strip_(std::max<int64_t>(
            1, std::max(kLeastStripPixels, kStripFloats / std::max(in_, out_)) / source_.unit)),
        to_weight_(joined(group_geometry(like, weight, params), source_.joined)),
        panels_(Panels::of(to_weight_)),
        to_input_(pointwise_geometry(out_, in_, strip_pixels())),
        job_(to_input_, {nullptr, 0, 0, strip_stride()}, {nullptr, 0, 0, in_}, {}) {
    if (is_pointwise(weight, params))
      join_rows(pixel_rows(input));
    else
      bring_in(input, params);
    offsets_ = position_offsets(to_weight_, input_);
  }

  StripGradients run(const at::Tensor& like_input) {
    StripGradients found;
    if (wanted_.input) {
      found.input = gradient_empty_like(like_input);
      grad_input_ = found.input.data_ptr();
      float* packed = thread_scratch(ScratchSlot::kPacked, packed_floats(to_input_));
      pack_weight_into(to_input_, weight_.const_data_ptr<float>(),
                       {weight_.stride(1), weight_.stride(0), weight_.stride(2), weight_.stride(3)}, packed);
      packed_ = packed;
    }
    if (wanted_.weight) {
      found.weight = gradient_empty_like(weight_);
      sums_ = thread_scratch(ScratchSlot::kSums, parts_ * part_floats());
    }
    const at::Tensor sums = found.weight.defined() ? weight_of_sums(found.weight) : at::Tensor();
    const int64_t out = to_weight_.out_channels;
    std::vector<float> bias(wanted_.bias ? static_cast<size_t>(parts_ * out) : 0, 0.0f);
    parallel_team(team_size(), [&](int thread, int team, Barrier& barrier) {
      const auto [begin, end] = share(parts_, 1, thread, team);
      for (int64_t part = begin; part < end; ++part)
        run_part(part, wanted_.bias ? bias.data() + part * out : nullptr);
      if (!wanted_.weight) return;
      barrier.wait();
      const auto [first, last] = share(part_floats(), 16, thread, team);
      add_parts(first, last);
      barrier.wait();
      const auto [channel, behind] = share(in_, 16, thread, team);
      unpack_sums(to_weight_, panels_, sums_, sums.data_ptr<float>(), weight_strides(sums), channel, behind);
    });
    if (wanted_.weight && source_.joined > 1) add_joined(sums, found.weight);
    if (wanted_.bias) found.bias = sum_of_parts(bias, out_);
    return found;
  }

 private:
  // What the sums are brought into: the weight's gradient, or that of the joined pixels' weight.
  at::Tensor weight_of_sums(const at::Tensor& weight) const {
    if (source_.joined == 1) return weight;
    const ConvGeometry& g = to_weight_;
    return at::empty({g.out_channels, in_, g.kernel_h, g.kernel_w}, weight.options());
  }
  // Every pixel's part of the kernel.
  void add_joined(const at::Tensor& sums, const at::Tensor& weight) const {
    const int64_t distance = to_weight_.stride_w / source_.joined;
    for (int64_t i = 0; i < source_.joined; ++i) {
      const at::Tensor part = sums.narrow(0, i * out_, out_).narrow(3, i * distance, weight.size(3));
      i == 0 ? weight.copy_(part) : weight.add_(part);
    }
  }

  int64_t strip_pixels() const { return strip_ * source_.unit; }
  int64_t strip_stride() const { return source_.makes() ? out_ : source_.grad.stride; }
  int64_t part_floats() const { return to_weight_.packed_bytes() / static_cast<int64_t>(sizeof(float)); }

  void run_part(int64_t part, float* bias) const {
    const int64_t begin = units_ * part / parts_, end = units_ * (part + 1) / parts_;
    const int64_t strips = (end - begin + strip_ - 1) / strip_, unit = source_.unit;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t first = begin + (end - begin) * s / strips,
                    last = begin + (end - begin) * (s + 1) / strips;
      run_strip(first * unit, (last - first) * unit, part, s > 0, bias);
    }
  }

  void run_strip(int64_t first, int64_t pixels, int64_t part, bool adds, float* bias) const {
    const int64_t most = strip_pixels();
    float* const made = source_.makes() ? thread_scratch(ScratchSlot::kStrip, most * out_) : nullptr;
    if (source_.pooled) source_.pooled->run(first / row_, pixels / row_, made);
    const bool widens = source_.grad.narrow || source_.output.narrow || narrow_input_.narrow;
    float* wide = widens ? thread_scratch(ScratchSlot::kWidened, 2 * most * (out_ + in_)) : nullptr;
    float* const wide_input = wide + 2 * most * out_;
    const float* const grad = source_.pooled ? made : own_gradient(first, pixels, wide, made);
    if (bias)
      kernels().column_sum(grad, source_.joined * strip_stride(), pixels / source_.joined,
                           to_weight_.out_channels, nullptr, bias);
    if (wanted_.weight)
      add_products(first, first + pixels, grad, input_at(first, pixels, wide_input),
                   sums_ + part * part_floats(), adds);
    if (wanted_.input) add_input_gradient(first, pixels, grad, wide_input + most * in_);
  }

  // `made`: memory for it where it is made.
  const float* own_gradient(int64_t first, int64_t pixels, float* wide, float* made) const {
    if (!source_.masks()) return float_rows(source_.grad, first, pixels, made).data;
    activation_gradient_rows(source_.grad, source_.output, first, pixels, source_.activation, wide, made);
    return made;
  }

  // The input as if it began at pixel 0, of which at least a strip from `first` on is there.
  View input_at(int64_t first, int64_t pixels, float* scratch) const {
    if (!narrow_input_.narrow) return input_;
    const FloatRows rows = float_rows(narrow_input_, first, pixels, scratch);
    return {const_cast<float*>(rows.data) - first * rows.stride, 0, 0, rows.stride};
  }

  void add_input_gradient(int64_t first, int64_t pixels, const float* grad, float* scratch) const {
    static const AlignedFloats none(0);
    const bool narrow = narrow_input_.narrow;
    float* const to = narrow ? scratch : static_cast<float*>(grad_input_) + first * in_;
    job_.run_pixels(PackedConv(packed_, none, none), grad, to, 0, pixels, false);
    if (narrow)
      bf16_kernels().narrow({to, in_}, {static_cast<uint16_t*>(grad_input_) + first * in_, in_}, pixels, in_);
  }

  // A 1x1 kernel does not ask where a row or an image ends: all of them as one row.
  void join_rows(PixelRows rows) {
    held_ = rows.storage;
    if (rows.narrow) narrow_input_ = rows;
    input_ = {const_cast<float*>(rows.data), 0, 0, rows.narrow ? rows.channels : rows.stride};
    to_weight_.out_width = rows.rows;
    to_weight_.images = to_weight_.out_height = 1;
  }

  void bring_in(const at::Tensor& input, const Conv2dParams& p) {
    const int64_t ph = p.padding[0], pw = p.padding[1];
    input_ = with_border_kept(input, {ph, pw, ph, pw}, held_);
    input_.data -= ph * input_.row + pw * input_.pixel;
  }

  void add_products(int64_t first, int64_t end, const float* grad, const View& input, float* sums,
                    bool adds) const {
    const ConvGeometry& g = to_weight_;
    const int64_t stride = source_.joined * strip_stride(), begin = first / source_.joined;
    WeightGradCall call{};
    call.input = input;
    call.grad = {const_cast<float*>(grad) - begin * stride, g.out_height * g.out_width * stride,
                 g.out_width * stride, stride};
    call.images = g.images;
    call.height = g.out_height;
    call.width = g.out_width;
    call.stride_h = g.stride_h;
    call.stride_w = g.stride_w;
    call.offset = offsets_.data();
    call.positions = g.depth();
    call.channels = g.out_channels;
    call.panel_vectors = panels_.vectors;
    call.sums = sums;
    call.adds = adds;
    call.first = begin;
    call.last = end / source_.joined;
    fetch_strip(end, std::min(strip_pixels(), units_ * source_.unit - end), call.ahead);
    kernels().weight_gradient(call, 0, kernels().gradient_units(g.out_channels, panels_.vectors, g.depth()));
  }

  // What run_part needs next.
  void fetch_strip(int64_t first, int64_t pixels, FarFloats* ahead) const {
    // Memory is all that counts: two bfloat16 values lie where one float does.
    const auto rows = [&](const void* data, bool narrow, int64_t stride) {
      const int64_t step = narrow ? 2 : 1;
      *ahead++ = {static_cast<const float*>(data) + first * stride / step, pixels * stride / step};
    };
    const auto dense_rows = [&](const PixelRows& r) {
      if (r.given() && r.stride < 2 * out_)
        r.narrow ? rows(r.narrow, true, r.stride) : rows(r.data, false, r.stride);
    };
    const bool narrow = narrow_input_.narrow;
    if (narrow)
      rows(narrow_input_.narrow, true, narrow_input_.stride);
    else if (wanted_.input || in_ > kMostFirstChannels)
      rows(input_.data, false, input_.pixel);
    dense_rows(source_.grad);
    dense_rows(source_.output);
    if (wanted_.input) rows(grad_input_, narrow, in_);
  }

  // The sums of all parts into those of the first.
  void add_parts(int64_t first, int64_t last) const {
    for (int64_t part = 1; part < parts_; ++part) {
      const float* from = sums_ + part * part_floats();
      for (int64_t i = first; i < last; ++i) sums_[i] += from[i];
    }
  }

  StripSource source_;
  const at::Tensor& weight_;
  WantedConvGradients wanted_;
  int64_t in_, out_, row_;         // channels; pixels of a row of the output
  int64_t units_, parts_, strip_;  // of the source; parts of them; units of a strip
  ConvGeometry to_weight_;
  Panels panels_;
  ConvGeometry to_input_;
  ConvJob job_;
  View input_{};              // the first position of the first pixel
  PixelRows narrow_input_{};  // instead of its data: bfloat16 pixels of a 1x1 convolution
  at::Tensor held_;
  std::vector<int64_t> offsets_;
  const float* packed_ = nullptr;
  void* grad_input_ = nullptr;  // of the input's type
  float* sums_ = nullptr;
};

// Where gradients are pixel behind pixel.
StripSource with_pixels_joined(StripSource source, const at::Tensor& like, const at::Tensor& weight,
                               const Conv2dParams& params) {
  if (is_pointwise(weight, params) || !source.makes()) return source;
  source.joined = joined_pixels(group_geometry(like, weight, params), kernels().vector_width);
  if (!source.pooled) source.unit = source.joined;
  return source;
}

// Whether geometry and sizes are served; `like` has the output's sizes.
bool serves(const at::Tensor& like, const at::Tensor& input, const at::Tensor& weight,
            const Conv2dParams& params, WantedConvGradients wanted) {
  if (params.groups != 1 || parts_of(pixels_of(like)) < kLeastParts || weight.numel() > kMostWeights)
    return false;
  const bool first_layer = !wanted.input && weight.size(1) <= kMostFirstChannels;
  if (!is_pointwise(weight, params) && !first_layer) return false;
  return !wanted.input || (channels_adjacent(input) && input.is_non_overlapping_and_dense());
}

}  // namespace

std::optional<StripGradients> strip_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                             const at::Tensor& weight, const at::Tensor& output,
                                             const Conv2dParams& params, Activation activation,
                                             WantedConvGradients wanted) {
  if (!serves(grad_output, input, weight, params, wanted)) return std::nullopt;
  return StripBackward(
             with_pixels_joined(source_of(grad_output, output, activation), grad_output, weight, params),
             grad_output, input, weight, params, wanted)
      .run(input);
}

std::optional<StripGradients> strip_backward(const PooledRows& rows, const at::Tensor& output,
                                             const at::Tensor& input, const at::Tensor& weight,
                                             const Conv2dParams& params, WantedConvGradients wanted) {
  const ImageSize& size = rows.size();
  const bool whole = size.height % rows.rows_together() == 0;
  if (!whole || size.images * size.height / rows.rows_together() < kLeastParts ||
      !serves(output, input, weight, params, wanted))
    return std::nullopt;
  return StripBackward(with_pixels_joined(source_of(rows), output, weight, params), output, input, weight,
                       params, wanted)
      .run(input);
}

}  // namespace cnnfast::cpu
