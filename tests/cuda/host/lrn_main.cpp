// Runs csrc/cuda/lrn_launch.cuh on the host: forward and backward.
#include "cuda/lrn_launch.cuh"
#include "launcher.h"
#include "protocol.h"

namespace {

using namespace cnnfast::cuda;
using emulation::Launcher;
using protocol::Call;

// type, values, channels, size of the window; alpha, beta, k; input, gradient (or none), output
template <typename T>
void run(Call& call) {
  Launcher launch(call.seed);
  auto& b = call.buffers;
  const LrnArgs<T> args = lrn_args<T>(b[0].as<T>(), b[1].as<T>(), b[2].as<T>(), call.ints[1], call.ints[2],
                                      call.ints[3], call.doubles[0], call.doubles[1], call.doubles[2]);
  if (!lrn_fits(call.ints[3])) emulation::fail("the window is too wide for the kernels");
  if (call.name == "forward")
    run_lrn<T>(launch, args);
  else
    run_lrn_backward<T>(launch, args);
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
