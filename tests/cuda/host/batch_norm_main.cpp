// Runs csrc/cuda/batch_norm_launch.cuh on the host: statistics, forward, backward, accumulate, terms.
#include "cuda/batch_norm_launch.cuh"
#include "launcher.h"
#include "protocol.h"

namespace {

using namespace cnnfast;
using namespace cnnfast::cuda;
using emulation::Launcher;
using protocol::Buffer;
using protocol::Call;

struct Options {
  explicit Options(const Call& call)
      : layout(make_layout(call.ints[1], call.ints[2], call.ints[3])),
        activation{static_cast<Activation::Kind>(call.ints[4]), static_cast<float>(call.doubles[1]),
                   static_cast<float>(call.doubles[2])},
        flag(call.ints[5] != 0),
        source(static_cast<Source>(call.ints[6])),
        eps(static_cast<float>(call.doubles[0])) {}
  Layout layout;
  Activation activation;
  bool flag;
  Source source;
  float eps;
};

// Distances of the images' pixels stand behind the options.
constexpr size_t kPixels = 7;

template <typename T>
void run(Call& call) {
  const Options o(call);
  Launcher launch(call.seed);
  auto& b = call.buffers;
  const auto images = [&](size_t i) { return Image<const T>{b[i].as<T>(), call.ints[kPixels + i]}; };
  const auto outputs = [&](size_t i) { return Image<T>{b[i].as<T>(), call.ints[kPixels + i]}; };
  const auto floats = [&](size_t i) { return b[i].as<float>(); };
  std::vector<float> memory(backward_floats(o.layout) + 4, NAN);
  float* workspace = memory.data();
  while (!is_vector_aligned(workspace)) ++workspace;
  emulation::name_memory(-1, workspace, backward_floats(o.layout) * sizeof(float));

  if (call.name == "statistics") {
    run_statistics<T>(launch, b[0].as<T>(), call.ints[kPixels], o.layout, workspace, floats(1), floats(2));
  } else if (call.name == "forward") {
    run_forward<T>(launch, {images(0), images(1), outputs(2), b[3].as<uint8_t>(), floats(4), floats(5),
                            floats(6), floats(7), o.eps, o.activation, o.layout});
  } else if (call.name == "backward") {
    run_backward<T>(
        launch, BackwardCall<T>{o.source, images(0), images(1), images(2), b[3].as<uint8_t>(), outputs(4),
                                outputs(5), floats(6), floats(7), floats(8), floats(9), floats(10),
                                floats(11), floats(12), o.eps, o.activation, o.flag, o.layout, workspace});
  } else if (call.name == "accumulate") {
    ReduceArgs<T> reduce{images(0),  images(1),    {},        {},        {},
                         outputs(2), floats(3),    floats(4), floats(5), floats(6),
                         o.eps,      o.activation, o.layout,  {},        {}};
    run_accumulate<T>(launch, reduce, o.flag, workspace, floats(7), floats(8), floats(9), floats(10));
  } else if (call.name == "terms") {
    run_terms<T>(launch, outputs(0), images(1), o.layout, floats(2), floats(3), floats(4));
  } else {
    emulation::fail("no such call: %s", call.name.c_str());
  }
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
