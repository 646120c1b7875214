// Gradients of a convolution in float32, some rows of images after the other: a thread makes their gradient
// before the activation or the batch norm, widens and borders what it reads, and goes through both products
// with all of that in its second-level cache. Threads share nothing on the way, which matters most where
// their cores have caches far apart.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "cpu/chunked_weight_grad.h"
#include "cpu/conv2d.h"
#include "cpu/image_chunks.h"
#include "cpu/input_grad_parts.h"
#include "cpu/tensor_view.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {

// Writes row `row` (over all images) of the gradient of the convolution's output to `to`, pixels side by
// side. Rows are asked for once as a chunk's own, and may be again as a neighbour of another chunk. `sums`:
// for the bias, where wanted and the row is the chunk's own.
using GradientRow = std::function<void(int64_t row, float* to, bool own, float* sums)>;

// Takes the gradient of chunk `index`'s input, pixels side by side, from the calling thread's memory.
using InputGradientSink = std::function<void(int64_t index, const Chunk& chunk, const View& grad)>;

struct ChunkedGradients {
  at::Tensor input, weight;  // undefined where not wanted; that of the weight is float32
  std::vector<double> bias;
};

class ChunkedBackward {
 public:
  // The weight is float32, the input may be bfloat16. `prologue` may be null; the gradient is that behind it.
  ChunkedBackward(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                  at::IntArrayRef output_sizes, WantedConvGradients wanted,
                  const InputPrologue* prologue = nullptr);

  // Whether there are chunks enough for several threads, and sums of the weight's gradient few enough to be
  // read for every one of them. By sizes alone, never by the number of threads.
  static bool serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                     at::IntArrayRef output_sizes, WantedConvGradients wanted);

  int64_t chunks() const { return chunks_.count(); }
  // With a sink the input's gradient is no tensor of its own; channels of the input are adjacent then, and it
  // may have gaps.
  ChunkedGradients run(const GradientRow& row, const InputGradientSink& sink = nullptr);

 private:
  struct Memory;
  struct ChunkEnd;

  bool serves_sizes() const;
  Memory memory() const;
  void pack();
  void run_part(int64_t part, const GradientRow& row, const ChunkEnd& to, float* weight_grad,
                float* bias) const;
  void bring_in(const Chunk& c, const Memory& m) const;
  void find_input(const Chunk& c, const Memory& m, const View& to) const;
  void add_weight(const Chunk& c, const Memory& m, bool first, bool last, float* weight_grad) const;
  void add_parts(const float* sums, int64_t first, int64_t last, float* to) const;

  const at::Tensor& weight_;
  const at::Tensor& input_;
  ImageRows input_rows_;
  WantedConvGradients wanted_;
  ImageSize size_;  // of the output
  ImageChunks chunks_, in_chunks_;
  int64_t parts_ = 1;  // of the chunks, each with a weight's gradient of its own
  std::optional<InputGradientParts> to_input_;
  std::optional<ChunkedWeightGradient> to_weight_;
  const InputPrologue* prologue_;
  Border grad_border_, input_border_;
  int64_t pad_h_, pad_w_, stride_h_;
  WeightStrides weight_strides_{};
  const float* packed_ = nullptr;
};

}  // namespace cnnfast::cpu
