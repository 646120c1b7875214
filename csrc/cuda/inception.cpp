// inception on CUDA tensors: every branch's last stage writes its slice of the output. Where the images are
// too few to fill the device, branches run in streams of their own.
#include "ops/inception.h"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/convolution.h"
#include "cuda/pool_tensors.h"
#include "cuda/tensors.h"
#include "ops/device_kernel.h"

namespace cnnfast::cuda {
namespace {

// A convolution's kernel commonly has 128 pixels and 128 channels to a block; with fewer pixels than half of
// the processors take, branches leave room for one another. A rule of thumb, not a measurement.
constexpr int64_t kPixelsPerBlock = 128;

// Streams for branches, forked from the current one and joined to it again. Between fork and join the current
// stream runs no stage itself: memory that it gives out meanwhile was last used before the fork, so that a
// branch may write it. What a branch takes for itself goes back to its own stream.
class BranchStreams {
 public:
  explicit BranchStreams(bool parallel) : parallel_(parallel), main_(c10::cuda::getCurrentCUDAStream()) {
    if (parallel_) fork_.record(main_);
  }
  BranchStreams(const BranchStreams&) = delete;
  BranchStreams& operator=(const BranchStreams&) = delete;
  // Also where a stage has thrown: what it has started must end before its memory is used again.
  ~BranchStreams() {
    for (const auto& stream : streams_) {
      at::cuda::CUDAEvent done;
      done.record(stream);
      done.block(main_);
    }
  }

  c10::cuda::CUDAStream of(size_t branch) {
    if (!parallel_) return main_;
    while (streams_.size() <= branch) {
      streams_.push_back(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, main_.device_index()));
      fork_.block(streams_.back());
    }
    return streams_[branch];
  }

 private:
  bool parallel_;
  c10::cuda::CUDAStream main_;
  at::cuda::CUDAEvent fork_;
  std::vector<c10::cuda::CUDAStream> streams_;
};

void run_stage(const Stage& stage, const at::Tensor& input, const at::Tensor& weight,
               const OptionalTensor& bias, const at::Tensor& target) {
  const OptionalTensor none;
  if (stage.kind == StageKind::kConv)
    conv2d_into(
        {input, weight, bias, none, none, stage.conv_params(), plain_activation_name(stage.activation.kind)},
        target);
  else if (stage.kind == StageKind::kMaxPool)
    max_pool2d_into(input, stage.pool_params(), stage.activation, target);
  else
    avg_pool2d_into(input, stage.pool_params(), stage.option != 0, std::nullopt, stage.activation, target);
}

// Kernel sizes of poolings fit the kernels' numbers, and so do the pixels.
bool served_block(const at::Tensor& input, at::IntArrayRef list) {
  if (!served(input) || input.numel() == 0) return false;
  for (const int64_t word : list)
    if (word > INT32_MAX / 64) return false;
  // An output of padded windows has at most four times the pixels (padding is at most half of a kernel).
  return pixel_count(input) <= INT32_MAX / 4;
}

std::vector<at::Tensor> inception(const at::Tensor& input, at::TensorList weights,
                                  const OptionalTensors& biases, at::IntArrayRef list) {
  if (!served_block(input, list)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x =
      with_pixels(input);  // one copy where channels are not adjacent, instead of one per branch
  const bool few = pixel_count(x) < processors() * kPixelsPerBlock / 2;
  BranchStreams streams(few);
  return inception_by_branches(
      [&](size_t branch, const Stage& stage, const at::Tensor& from, const at::Tensor& weight,
          const OptionalTensor& bias, const at::Tensor& target) {
        const c10::cuda::CUDAStreamGuard in_stream(streams.of(branch));
        run_stage(stage, from, weight, bias, target);
      },
      x, weights, biases, list);
}

[[maybe_unused]] const bool registered = DeviceKernel<inception_composite>::set(inception);

}  // namespace
}  // namespace cnnfast::cuda
