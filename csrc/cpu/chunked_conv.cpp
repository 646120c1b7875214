#include "cpu/chunked_conv.h"

#include "cpu/conv_job.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Fewer chunks are better shared by all threads.
constexpr int64_t kLeastChunks = 8;
// Every thread reads all weights for every chunk.
constexpr int64_t kMostWeightBytes = 4 << 20;

ImageChunks chunks_of(const Conv2dArgs& a, const at::Tensor& output) {
  const ImageSize size{output.size(0), output.size(2), output.size(3), output.size(1)};
  return {size, (a.input.size(3) + 2 * a.params.padding[1]) * a.weight.size(1) + size.width * size.channels};
}

}  // namespace

ChunkedConv::ChunkedConv(const Conv2dArgs& args, const at::Tensor& output, const InputPrologue* prologue)
    : args_(args),
      prologue_(prologue),
      chunks_(chunks_of(args, output)),
      in_chunks_(chunks_.of_input(args.input, 1)),
      input_(args.input),
      output_(output),
      geometry_(conv_geometry(args.input, args.weight, args.params, output.sizes(),
                              parse_activation("conv2d", args.activation))) {
  if (present(args.residual)) residual_.emplace(*args.residual);
  geometry_.images = chunks_.all_images();
  geometry_.out_height = chunks_.rows();
  geometry_.algorithm = trained_algorithm(geometry_);
  const Overreach beyond = overreach(geometry_);
  const int64_t ph = args.params.padding[0], pw = args.params.padding[1];
  border_ = {ph, pw, ph + beyond.bottom, pw + beyond.right};
  in_memory_ = in_chunks_.layout(border_, args.input.size(1));
  out_memory_ = chunks_.layout({}, output.size(1));
}

bool ChunkedConv::serves(const Conv2dArgs& a, const at::Tensor& output) {
  if (!ImageChunks::serve(a.weight, a.params, /*strides=*/false) || !channels_adjacent(a.input)) return false;
  if (present(a.residual) &&
      !(channels_adjacent(*a.residual) && a.residual->scalar_type() == output.scalar_type()))
    return false;
  const ImageChunks chunks = chunks_of(a, output);
  if (chunks.count() < kLeastChunks || !chunks.serve_size(a.input, 1)) return false;
  return ChunkedConv(a, output, nullptr).geometry_.packed_bytes() <= kMostWeightBytes;
}

void ChunkedConv::run(const PackedConv& weights) const {
  const int64_t floats = in_chunks_.floats(in_memory_) + 2 * chunks_.floats(out_memory_);
  parallel_team(team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(chunks_.count(), 1, thread, team);
    if (begin == end) return;
    float* const memory = thread_scratch(ScratchSlot::kStrip, floats);
    for (int64_t i = begin; i < end; ++i) run_chunk(i, weights, memory);
  });
}

void ChunkedConv::run_chunk(int64_t index, const PackedConv& weights, float* memory) const {
  const Chunk c = chunks_[index];
  const int64_t ph = args_.params.padding[0], pw = args_.params.padding[1];
  View input = ImageChunks::inside(in_memory_, border_, memory);
  in_chunks_.fill(in_chunks_[index], input, border_, ph,
                  [&](int64_t image, int64_t row, float* to) { input_.read(image, row, to, prologue_); });
  input.data -= ph * input.row + pw * input.pixel;
  memory += in_chunks_.floats(in_memory_);
  View output = output_.view_at(c), residual{};
  if (output_.narrow()) output = ImageChunks::inside(out_memory_, {}, memory);
  if (residual_) {
    residual = residual_->view_at(c);
    if (residual_->narrow()) {
      residual = ImageChunks::inside(out_memory_, {}, memory + chunks_.floats(out_memory_));
      chunks_.fill(c, residual, {}, 0,
                   [&](int64_t image, int64_t row, float* to) { residual_->read(image, row, to); });
    }
  }
  ConvGeometry g = geometry_;
  g.images = c.images;
  g.out_height = c.rows;
  ConvJob(g, input, output, residual).run(weights, 0, 1);
  output_.write(c, output);
}

}  // namespace cnnfast::cpu
