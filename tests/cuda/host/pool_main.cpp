// Runs csrc/cuda/pool_launch.cuh on the host: max, avg, their backward, and global.
#include "cuda/pool_launch.cuh"
#include "launcher.h"
#include "protocol.h"

namespace {

using namespace cnnfast;
using namespace cnnfast::cuda;
using emulation::Launcher;
using protocol::Call;

// type, images, channels, thirteen numbers of Windows, count_include_pad, divisor_override, activation,
// pixels of the buffers
struct Options {
  explicit Options(const Call& call) : images(call.ints[1]), channels(call.ints[2]) {
    int32_t* numbers[] = {&windows.in_height, &windows.in_width, &windows.height,     &windows.width,
                          &windows.kernel_h,  &windows.kernel_w, &windows.stride_h,   &windows.stride_w,
                          &windows.pad_h,     &windows.pad_w,    &windows.dilation_h, &windows.dilation_w};
    size_t place = 3;
    for (int32_t* number : numbers) *number = static_cast<int32_t>(call.ints[place++]);
    count_include_pad = call.ints[place++] != 0;
    divisor_override = static_cast<int32_t>(call.ints[place++]);
    activation.kind = static_cast<Activation::Kind>(call.ints[place++]);
    pixels = &call.ints[place];
  }
  int64_t images, channels;
  Windows windows{};
  bool count_include_pad;
  int32_t divisor_override;
  Activation activation{};
  const int64_t* pixels;
};

template <typename T>
void run(Call& call) {
  const Options o(call);
  Launcher launch(call.seed);
  auto& b = call.buffers;
  const auto input = [&](size_t i) { return Place4d<const T>{b[i].as<T>(), o.pixels[i]}; };
  const auto output = [&](size_t i) { return Place4d<T>{b[i].as<T>(), o.pixels[i]}; };
  const PoolKind kind = call.name.rfind("max", 0) == 0 ? PoolKind::kMax : PoolKind::kAvg;
  if (call.name == "global")
    run_global_pool<T>(launch, input(0), b[1].as<T>(), o.images,
                       int64_t{o.windows.in_height} * o.windows.in_width, o.channels);
  else if (call.name == "max" || call.name == "avg")
    run_pool<T>(launch, kind,
                {input(0), output(1), o.images, o.channels, o.windows, o.count_include_pad,
                 o.divisor_override, o.activation});
  else if (call.name == "max_backward" || call.name == "avg_backward")
    run_pool_backward<T>(launch, kind,
                         {input(0), input(1), output(2), b[3].as<uint8_t>(), o.images, o.channels, o.windows,
                          o.count_include_pad, o.divisor_override});
  else
    emulation::fail("no such call: %s", call.name.c_str());
  protocol::answer(call);
}

}  // namespace

int main() {
  Call call;
  while (protocol::next_call(call)) {
    if (call.ints[0] == 0) run<float>(call);
    if (call.ints[0] == 1) run<__half>(call);
    if (call.ints[0] == 2) run<__nv_bfloat16>(call);
  }
}
