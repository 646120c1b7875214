// Stands for csrc/cuda in a library that was built without nvcc: kernels that compute by ATen, count their
// calls and take as long as they are told. With them the choice between ATen and CUDA kernels runs on a
// machine without a GPU.
#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <thread>

#include "ops/batch_norm2d_relu.h"
#include "ops/device_kernel.h"
#include "ops/local_response_norm.h"
#include "ops/pool2d.h"

#define FAKE extern "C" __attribute__((visibility("default")))

namespace {

using namespace cnnfast;

std::map<std::string, int> calls;
long delay_ms = 0;
bool serves = true;

template <class Name, auto* kComposite>
struct Fake;

template <class Name, class Result, class... Args, Result (*kComposite)(Args...)>
struct Fake<Name, kComposite> {
  static Result run(Args... args) {
    if (!serves) throw Unserved();
    ++calls[Name::value];
    std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
    return kComposite(args...);
  }
};

#define FAKE_KERNELS(_)         \
  _(batch_statistics)           \
  _(batch_norm_act)             \
  _(batch_norm_act_bits)        \
  _(batch_norm2d)               \
  _(batch_norm2d_backward)      \
  _(batch_norm2d_relu)          \
  _(batch_norm2d_relu_backward) \
  _(max_pool2d)                 \
  _(max_pool2d_backward)        \
  _(avg_pool2d)                 \
  _(avg_pool2d_backward)        \
  _(local_response_norm)        \
  _(local_response_norm_backward)

#define FAKE_NAME(op)                         \
  struct op##_name {                          \
    static constexpr const char* value = #op; \
  };
FAKE_KERNELS(FAKE_NAME)

}  // namespace

// From then on the library has these kernels.
FAKE void fake_install() {
#define FAKE_INSTALL(op) DeviceKernel<op##_composite>::set(Fake<op##_name, op##_composite>::run);
  FAKE_KERNELS(FAKE_INSTALL)
}
FAKE void fake_set(long delay, bool serves_calls) {
  delay_ms = delay;
  serves = serves_calls;
}
FAKE int fake_calls(const char* op) { return calls[op]; }
