// conv2d on the CPU: float32 through the kernel table, bfloat16 widened for it, other types through ATen.
#include "ops/conv2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/bf16_table.h"
#include "cpu/chunked_conv.h"
#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/image_groups.h"
#include "cpu/memory_pool.h"
#include "cpu/normalise.h"
#include "cpu/one_pixel_conv.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 4e5;

AlignedFloats channel_values(const ConvGeometry& g, const OptionalTensor& t) {
  return present(t) ? pack_channels(g, widened(*t).contiguous().const_data_ptr<float>()) : AlignedFloats(0);
}

}  // namespace

void InputPrologue::apply(const float* from, int64_t step, float* to, int64_t count, int64_t channels) const {
  kernels().affine({from, nullptr, to, scale, shift, step, 0, channels, channels, activation}, count);
}

void InputPrologue::apply(const uint16_t* from, int64_t step, float* to, int64_t count,
                          int64_t channels) const {
  if (Affine16Call<float>::serves(activation))
    return bf16_kernels().norm->affine_wide(
        {from, nullptr, to, scale, shift, step, 0, channels, channels, activation}, count);
  bf16_kernels().widen({from, step}, {to, channels}, count, channels);
  apply(to, channels, to, count, channels);
}

ConvGeometry conv_geometry(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p,
                           at::IntArrayRef output_sizes, Activation activation) {
  return {input.size(0),   input.size(1),
          weight.size(0),  p.groups,
          weight.size(2),  weight.size(3),
          p.stride[0],     p.stride[1],
          p.dilation[0],   p.dilation[1],
          output_sizes[2], output_sizes[3],
          activation,      {},
          false,           input.scalar_type() == at::kBFloat16};
}

at::Tensor conv2d_in(at::ScalarType type, const Conv2dArgs& a, const std::vector<c10::SymInt>& sizes,
                     const InputPrologue* prologue) {
  const at::Tensor output =
      output_empty(concrete(sizes), a.input.options().dtype(type), at::MemoryFormat::ChannelsLast);
  conv2d_into(a, output, prologue);
  return output;
}

namespace {

ImageGroups groups_of(const Conv2dArgs& a, const at::Tensor& output) {
  const int64_t ph = a.params.padding[0], pw = a.params.padding[1];
  return {output.size(0), image_values(a.input.sizes(), {ph, pw, ph, pw}) + image_values(output.sizes()),
          a.weight.numel(), a.input.scalar_type() != at::kFloat};
}

// Weights as a convolution of such sizes takes them.
class Weights {
 public:
  Weights(const Conv2dArgs& a, const ConvGeometry& g, bool raw)
      : raw_(raw ? widened(a.weight) : at::Tensor()),
        packed_(raw ? nullptr : packed_weight(a.weight, g)),
        scale_(channel_values(g, a.scale)),
        shift_(channel_values(g, a.bias)) {}
  PackedConv get() const {
    return packed_ ? PackedConv(*packed_, scale_, shift_)
                   : PackedConv(raw_.const_data_ptr<float>(), weight_strides(raw_), scale_, shift_);
  }

 private:
  at::Tensor raw_;
  std::shared_ptr<const AlignedFloats> packed_;
  AlignedFloats scale_, shift_;
};

// One group of images after the other, with weights that are packed once.
class GroupedConv {
 public:
  GroupedConv(const Conv2dArgs& args, const at::Tensor& output, const InputPrologue* prologue)
      : args_(args),
        output_(output),
        prologue_(prologue),
        groups_(groups_of(args, output)),
        geometry_(conv_geometry(args.input, args.weight, args.params, output.sizes(),
                                parse_activation("conv2d", args.activation))) {
    geometry_.images = std::min(groups_.step(), output.size(0));
    geometry_.algorithm = trained_algorithm(geometry_);
  }

  void run() {
    const Weights held(args_, geometry_, is_trained(args_.weight) && takes_raw_weights(geometry_));
    const PackedConv weights = held.get();
    groups_.each([&](int64_t first, int64_t count) { run_group(weights, first, count); });
  }

 private:
  void run_group(const PackedConv& weights, int64_t first, int64_t count) const {
    const at::Tensor target = images_at(output_, first, count);
    const bool narrow = target.scalar_type() == at::kBFloat16;
    const at::Tensor output = narrow ? output_empty(target.sizes(), target.options().dtype(at::kFloat),
                                                    at::MemoryFormat::ChannelsLast)
                                     : target;
    ConvGeometry g = geometry_;
    g.images = count;
    const Overreach beyond = overreach(g);
    at::Tensor padded, residual;
    const int64_t ph = args_.params.padding[0], pw = args_.params.padding[1];
    const Border border{ph, pw, ph + beyond.bottom, pw + beyond.right};
    const at::Tensor images = images_at(args_.input, first, count);
    const View input = prologue_ ? normalised_with_border(images, *prologue_, border, padded)
                                 : with_border(images, border, padded);
    const View added = residual_view(first, count, residual);
    const ConvJob job(g,
                      {input.data - ph * input.row - pw * input.pixel, input.image, input.row, input.pixel},
                      view_of(output), added);
    parallel_team(g.flops() < kSerialFlops ? 1 : team_size(),
                  [&](int thread, int team, Barrier&) { job.run(weights, thread, team); });
    if (narrow) write_images(view_of(output), target);
  }

  View residual_view(int64_t first, int64_t count, at::Tensor& storage) const {
    if (!present(args_.residual)) return {};
    storage = widened(images_at(*args_.residual, first, count));
    if (!channels_adjacent(storage)) storage = channels_last_copy(storage);
    return view_of(storage);
  }

  const Conv2dArgs& args_;
  const at::Tensor& output_;
  const InputPrologue* prologue_;
  ImageGroups groups_;
  ConvGeometry geometry_;  // of the first group
};

}  // namespace

void conv2d_into(const Conv2dArgs& args, const at::Tensor& output, const InputPrologue* prologue) {
  if (output.numel() == 0) return;
  if (!ChunkedConv::serves(args, output)) return GroupedConv(args, output, prologue).run();
  const ChunkedConv conv(args, output, prologue);
  const Weights held(args, conv.geometry(), /*raw=*/false);
  conv.run(held.get());
}

namespace {

at::Tensor conv2d_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& residual, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::string_view activation) {
  const bool wide = takes_widened(input);
  if (!wide && !is_plain_float(input))
    return conv2d_composite(input, weight, bias, scale, residual, stride, padding, dilation, groups,
                            activation);
  const Conv2dArgs args{input,     weight, bias, scale, residual, {stride, padding, dilation, groups},
                        activation};
  const auto sizes = check_conv2d("conv2d", args);
  if (at::Tensor pixel = one_pixel_conv(args, concrete(sizes)); pixel.defined()) return pixel;
  const at::Tensor paired = wide ? paired_conv2d(args, sizes) : at::Tensor();
  return paired.defined() ? paired : conv2d_in(input.scalar_type(), args, sizes);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d", TORCH_FN(conv2d_cpu)); }

}  // namespace cnnfast::cpu
