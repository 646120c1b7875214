// conv2d on CUDA tensors: whichever backend serves the shape, the fastest of those measured.
#include "ops/conv2d.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "gpu/choice.h"
#include "gpu/conv2d_triton.h"
#include "gpu/nhwc.h"
#include "gpu/stream.h"
#include "gpu/triton/launch.h"
#include "gpu/warn.h"
#ifdef CNNFAST_WITH_CUDA
#include "cuda/convolution.h"
#endif

namespace cnnfast::gpu {
namespace {

struct Call {
  const Conv2dArgs& args;
  const std::vector<c10::SymInt>& checked_sizes;
  std::vector<int64_t> output_sizes;

  c10::Device device() const { return args.input.device(); }
};

enum class Backend { kAten, kCuda, kTriton };

struct Choice {
  Backend backend;
  TritonConv2d triton;  // of kTriton
};

// The CUDA kernels were asked and do not serve the call: an answer, no failure.
class Unserved : public std::runtime_error {
 public:
  Unserved() : std::runtime_error("the CUDA kernels have no form for this type, activation or size") {}
};

at::Tensor run_aten(const Conv2dArgs& a) {
  return conv2d_composite(a.input, a.weight, a.bias, a.scale, a.residual, a.params.stride, a.params.padding,
                          a.params.dilation, a.params.groups, a.activation);
}

at::Tensor run(const Choice& choice, const Call& call) {
  if (choice.backend == Backend::kAten) return run_aten(call.args);
  if (choice.backend == Backend::kCuda) {
    at::Tensor output = device_conv2d()(call.args, call.checked_sizes);
    if (!output.defined()) throw Unserved();
    return output;
  }
  const at::Tensor output =
      at::empty(call.output_sizes, call.args.input.options(), at::MemoryFormat::ChannelsLast);
  run_triton_conv2d(choice.triton, call.args, output);
  return output;
}

// Layout as a kernel meets it: the pixel stride, "copy" where there is none, and whether 16 bytes can be read
// at once.
void describe(std::ostream& out, const char* name, const at::Tensor& t) {
  const auto stride = pixel_stride(t);
  out << ' ' << name << t.sizes() << '/';
  if (stride)
    out << *stride << (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 ? "u" : "");
  else
    out << "copy";
}

// Everything that the choice depends on.
std::string key_of(const Call& call) {
  const Conv2dArgs& a = call.args;
  std::ostringstream key;
  key << "conv2d "
      << (find_driver().driver ? device_facts(std::max<int>(call.device().index(), 0)).name : "-") << ' '
      << c10::toString(a.input.scalar_type());
  describe(key, "input", a.input);
  describe(key, "weight", a.weight);
  key << " stride" << a.params.stride << " padding" << a.params.padding << " dilation" << a.params.dilation
      << " groups" << a.params.groups << ' ' << a.activation << (present(a.bias) ? " bias" : "")
      << (present(a.scale) ? " scale" : "");
  if (present(a.residual)) describe(key, "residual", *a.residual);
  if (a.input.scalar_type() == at::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV))
    key << " tf32";
  return key.str();
}

bool may_measure(const Call& call) {
  if (at::globalContext().deterministicAlgorithms()) return false;  // times differ from run to run
  return !find_driver().driver || !is_capturing(current_stream(call.device()));
}

// What a key was settled on in this process.
class Settled {
 public:
  static Settled& of_process() {
    static auto& settled = *new Settled;  // outlives every thread
    return settled;
  }
  const Choice* find(const std::string& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = rows_.find(key);
    return found == rows_.end() ? nullptr : &found->second;  // rows are never erased or changed
  }
  void add(const std::string& key, const Choice& choice) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_.emplace(key, choice);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, Choice> rows_;
};

// What can serve a call, in the order of preference where nothing is measured: one pass behind ATen's
// convolution, ATen alone, Triton's kernels.
class Options {
 public:
  explicit Options(const Call& call) : call_(call) {
    const bool built = device_conv2d() != nullptr;
    add("cuda", {Backend::kCuda, {}},
        built ? "" : "this build has no CUDA kernels (no nvcc, or CNNFAST_CUDA=0)");
    add("aten", {Backend::kAten, {}}, "");
    std::string reason;
    const auto kernels = triton_conv2d_choices(call.args, call.output_sizes, &reason);
    for (const auto& kernel : kernels)
      add("triton/" + std::string(kernel.variant->name), {Backend::kTriton, kernel}, "");
    if (kernels.empty()) add("triton", {Backend::kTriton, {}}, reason);
  }

  // The choice, and the result where it was run to see whether it serves. What cannot run after all is left
  // out.
  std::pair<Choice, at::Tensor> settle(const std::string& key, bool measure) {
    const Timer timer = measure ? Timer([this](size_t index) { return time(index); }) : Timer();
    for (;;) {
      try {
        running_ = choose("conv2d", key, options_, forced_backend(), Times::of_process(), timer);
        return {choices_[running_], run(choices_[running_], call_)};
      } catch (const Unserved& answer) {
        options_[running_].unavailable = answer.what();
      } catch (const DriverError& error) {
        if (forced_backend().empty()) warn(std::string(error.what()) + "; conv2d goes on without it");
        options_[running_].unavailable = error.what();
      }
    }
  }

 private:
  void add(std::string name, const Choice& choice, std::string unavailable) {
    options_.push_back({std::move(name), std::move(unavailable)});
    choices_.push_back(choice);
  }

  double time(size_t index) {
    running_ = index;
    return milliseconds(call_.device(), [&] { run(choices_[index], call_); });
  }

  const Call& call_;
  std::vector<Option> options_;
  std::vector<Choice> choices_;
  size_t running_ = 0;
};

bool is_plain(const Conv2dArgs& args) {
  const bool nothing_to_choose = table().count == 0 && !device_conv2d() && forced_backend().empty();
  return nothing_to_choose || forced_backend() == "aten" || args.input.numel() == 0;
}

at::Tensor conv2d_gpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& scale, const OptionalTensor& residual, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      std::string_view activation) {
  const Conv2dArgs args{input,     weight, bias, scale, residual, {stride, padding, dilation, groups},
                        activation};
  const auto sizes = check_conv2d("conv2d", args);
  if (is_plain(args)) return run_aten(args);
  const Call call{args, sizes, C10_AS_INTARRAYREF_SLOW(sizes).vec()};
  const std::string key = key_of(call);
  if (const Choice* settled = Settled::of_process().find(key)) return run(*settled, call);
  const bool measure = may_measure(call);
  const auto [choice, output] = Options(call).settle(key, measure);
  if (measure) Settled::of_process().add(key, choice);
  return output;
}

#ifdef CNNFAST_WITH_CUDA
// A convolution that writes its slice of a concatenation: by Triton where the choice for a tensor of its own
// was Triton, or forced.
bool conv2d_into_slice(const Conv2dArgs& args, const at::Tensor& output) {
  if (is_plain(args) || table().count == 0) return false;
  const auto sizes = check_conv2d("conv2d", args);
  const Call call{args, sizes, C10_AS_INTARRAYREF_SLOW(sizes).vec()};
  const std::string key = key_of(call);
  const Choice* settled = Settled::of_process().find(key);
  if (!settled && may_measure(call)) {
    Settled::of_process().add(key, Options(call).settle(key, true).first);
    settled = Settled::of_process().find(key);
  }
  if (!settled || settled->backend != Backend::kTriton || !fits_output(settled->triton, args, output))
    return false;
  run_triton_conv2d(settled->triton, args, output);
  return true;
}

[[maybe_unused]] const bool registered = (cuda::set_slice_conv2d(conv2d_into_slice), true);
#endif

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CUDA, m) { m.impl("conv2d", TORCH_FN(conv2d_gpu)); }

}  // namespace cnnfast::gpu
