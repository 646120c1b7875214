#include "cpu/chunked_backward.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/conv_input_grad.h"
#include "cpu/conv_weight_grad.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

// Finishing the sums of a part takes as long as a few of its tiles, and its result takes memory.
constexpr int64_t kLeastPartTiles = 64, kLeastParts = 4, kMostParts = 32, kPartsBytes = 10 << 20;

int64_t row_floats(const ImageSize& size, const at::Tensor& input, const Conv2dParams& p) {
  const int64_t width = std::max(size.width, input.size(3)) + 2 * p.padding[1];
  return width * (size.channels + 2 * p.stride[0] * input.size(1));
}

}  // namespace

// Of the calling thread: views of the first pixel inside the border.
struct ChunkedBackward::Memory {
  View grad, input, input_grad;
};

// Where the input's gradient goes.
struct ChunkedBackward::ChunkEnd {
  const ImageRows* rows;  // null: to the sink
  const InputGradientSink& sink;
};

ChunkedBackward::ChunkedBackward(const at::Tensor& input, const at::Tensor& weight,
                                 const Conv2dParams& params, at::IntArrayRef output_sizes,
                                 WantedConvGradients wanted, const InputPrologue* prologue)
    : weight_(weight),
      input_(input),
      input_rows_(input),
      wanted_(wanted),
      size_{output_sizes[0], output_sizes[2], output_sizes[3], output_sizes[1]},
      chunks_(size_, row_floats(size_, input, params)),
      in_chunks_(chunks_.of_input(input, params.stride[0])),
      prologue_(prologue),
      pad_h_(params.padding[0]),
      pad_w_(params.padding[1]),
      stride_h_(params.stride[0]) {
  // As if every strip of rows were an image.
  const int64_t images = chunks_.all_images(), rows = chunks_.rows(), in = input.size(1);
  if (wanted.input) {
    to_input_.emplace(at::IntArrayRef({images, in, in_chunks_.rows(), input.size(3)}), weight.sizes(), params,
                      at::IntArrayRef({images, size_.channels, rows, size_.width}),
                      InputGradientParts::of(input));
    grad_border_ = to_input_->border;
  }
  to_weight_.emplace(ConvGeometry{chunks_.images(),
                                  in,
                                  size_.channels,
                                  1,
                                  weight.size(2),
                                  weight.size(3),
                                  params.stride[0],
                                  params.stride[1],
                                  1,
                                  1,
                                  rows,
                                  size_.width,
                                  {},
                                  {},
                                  false,
                                  input.scalar_type() == at::kBFloat16},
                     images);
  const Overreach beyond = to_weight_->beyond();
  // All taps of the last pixel; rows and columns that strides leave out may lie behind them.
  const auto behind = [&](int i, int64_t places, int64_t size) {
    const int64_t last = (places - 1) * params.stride[i] - params.padding[i] + weight.size(2 + i);
    return std::max<int64_t>(0, last - size);
  };
  input_border_ = {pad_h_, pad_w_, behind(0, rows, in_chunks_.rows()) + beyond.bottom,
                   behind(1, size_.width, input.size(3)) + beyond.right};
  const int64_t part_bytes = weight.numel() * static_cast<int64_t>(sizeof(float));
  const int64_t most_parts =
      std::min({kMostParts, images * to_weight_->tiles() / kLeastPartTiles, kPartsBytes / part_bytes});
  while (2 * parts_ <= std::min(most_parts, chunks_.count())) parts_ *= 2;
}

bool ChunkedBackward::serves_sizes() const {
  return parts_ >= kLeastParts && to_weight_->serves() && chunks_.serve_size(input_, stride_h_);
}

bool ChunkedBackward::serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& p,
                             at::IntArrayRef output_sizes, WantedConvGradients wanted) {
  if (!ImageChunks::serve(weight, p, /*strides=*/!wanted.input) || !wanted.any() || input.numel() == 0)
    return false;
  if (!channels_adjacent(input) || !weight.is_non_overlapping_and_dense()) return false;
  if (!InputGradient::serves(input, weight, p) || !serves_weight_gradient(weight, 1)) return false;
  return ChunkedBackward(input, weight, p, output_sizes, wanted).serves_sizes();
}

ChunkedBackward::Memory ChunkedBackward::memory() const {
  const View grad = chunks_.layout(grad_border_, size_.channels),
             input = in_chunks_.layout(input_border_, input_.size(1)),
             input_grad = in_chunks_.layout({}, input_.size(1));
  const int64_t of_grad = chunks_.floats(grad), of_input = in_chunks_.floats(input);
  float* const first =
      thread_scratch(ScratchSlot::kStrip, of_grad + of_input + in_chunks_.floats(input_grad));
  return {ImageChunks::inside(grad, grad_border_, first),
          ImageChunks::inside(input, input_border_, first + of_grad),
          ImageChunks::inside(input_grad, {}, first + of_grad + of_input)};
}

void ChunkedBackward::pack() {
  if (!to_input_) return;
  const InputGradientPart& part = to_input_->parts[0];
  float* packed = thread_scratch(ScratchSlot::kPacked, packed_floats(part.geometry));
  const TurnedWeight turned(weight_, part, {1, 1});
  pack_weight_into(part.geometry, turned.first, turned.strides, packed, true);
  packed_ = packed;
}

ChunkedGradients ChunkedBackward::run(const GradientRow& row, const InputGradientSink& sink) {
  ChunkedGradients found;
  pack();
  std::optional<ImageRows> input_grad;
  if (wanted_.input && !sink) {
    found.input = input_.is_non_overlapping_and_dense()
                      ? gradient_empty_like(input_)
                      : gradient_empty(input_.sizes(), input_.options(), at::MemoryFormat::ChannelsLast);
    input_grad.emplace(found.input);
  }
  const ChunkEnd end{input_grad ? &*input_grad : nullptr, sink};
  const int64_t floats = wanted_.weight ? weight_.numel() : 0, out = size_.channels;
  at::Tensor sums;
  if (wanted_.weight) {
    found.weight = gradient_empty_like(weight_);
    weight_strides_ = weight_strides(found.weight);
    sums = gradient_empty({parts_, floats}, found.weight.options());
  }
  float* const part_sums = floats ? sums.data_ptr<float>() : nullptr;
  std::vector<float> bias(wanted_.bias ? static_cast<size_t>(chunks_.count() * out) : 0, 0.0f);
  parallel_team(team_size(), [&](int thread, int team, Barrier& barrier) {
    const auto [begin, behind] = share(parts_, 1, thread, team);
    for (int64_t part = begin; part < behind; ++part)
      run_part(part, row, end, part_sums + part * floats, wanted_.bias ? bias.data() : nullptr);
    if (!floats) return;
    barrier.wait();
    const auto [first, last] = share(floats, 16, thread, team);
    add_parts(part_sums, first, last, found.weight.data_ptr<float>());
  });
  found.bias.assign(wanted_.bias ? static_cast<size_t>(out) : 0, 0.0);
  for (size_t i = 0; i < bias.size(); ++i) found.bias[i % found.bias.size()] += bias[i];
  return found;
}

void ChunkedBackward::add_parts(const float* sums, int64_t first, int64_t last, float* to) const {
  std::copy(sums + first, sums + last, to + first);
  for (int64_t part = 1; part < parts_; ++part) {
    const float* from = sums + part * weight_.numel();
    for (int64_t i = first; i < last; ++i) to[i] += from[i];
  }
}

void ChunkedBackward::run_part(int64_t part, const GradientRow& row, const ChunkEnd& to, float* weight_grad,
                               float* bias) const {
  const auto [begin, end] = share(chunks_.count(), 1, static_cast<int>(part), static_cast<int>(parts_));
  const Memory m = memory();
  // Neighbours' rows that the gradients read.
  const int64_t halo = to_input_ ? std::max<int64_t>(0, weight_.size(2) - 1 - pad_h_) : 0;
  for (int64_t i = begin; i < end; ++i) {
    const Chunk c = chunks_[i], of_input = in_chunks_[i];
    float* const sums = bias ? bias + i * size_.channels : nullptr;
    chunks_.fill(c, m.grad, grad_border_, halo, [&](int64_t image, int64_t y, float* pixels) {
      const bool own = y >= c.row && y < c.row + c.rows;
      row(image * size_.height + y, pixels, own, own ? sums : nullptr);
    });
    if (wanted_.weight) {
      bring_in(of_input, m);
      add_weight(c, m, i == begin, i + 1 == end, weight_grad);
    }
    if (!to_input_) continue;
    const bool direct = to.rows && !to.rows->narrow();
    const View grad = direct ? to.rows->view_at(of_input) : m.input_grad;
    find_input(of_input, m, grad);
    to.rows ? to.rows->write(of_input, grad) : to.sink(i, of_input, grad);
  }
}

void ChunkedBackward::find_input(const Chunk& c, const Memory& m, const View& to) const {
  static const AlignedFloats none(0);
  const InputGradientPart& part = to_input_->parts[0];
  View from = m.grad;
  from.data += part.rows.lowest * from.row + part.columns.lowest * from.pixel;
  ConvGeometry g = part.geometry;
  g.images = c.images;
  g.out_height = c.rows;
  ConvJob(g, from, to, View{}).run(PackedConv(packed_, none, none), 0, 1);
}

void ChunkedBackward::bring_in(const Chunk& c, const Memory& m) const {
  const int64_t halo = std::max(pad_h_, weight_.size(2) - 1 - pad_h_);
  in_chunks_.fill(c, m.input, input_border_, halo, [&](int64_t image, int64_t row, float* to) {
    input_rows_.read(image, row, to, prologue_);
  });
}

void ChunkedBackward::add_weight(const Chunk& c, const Memory& m, bool first, bool last,
                                 float* weight_grad) const {
  View input = m.input;
  input.data -= pad_h_ * input.row + pad_w_ * input.pixel;
  to_weight_->add(input, m.grad, {c.images, c.rows, first, last}, weight_grad, weight_strides_);
}

}  // namespace cnnfast::cpu
