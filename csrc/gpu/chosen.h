// Operators that ATen and the kernels of csrc/cuda both have: the choice between the two.
#pragma once
#include <tuple>

#include "gpu/backends.h"
#include "gpu/key.h"

namespace cnnfast::gpu {

// kHoldsConvs: kernels of csrc/cuda that ask for convolutions by their own choice. Forced to be Triton's,
// they run inside those.
template <class Name, auto* kComposite, bool kHoldsConvs = false>
struct Chosen;

// Name::value is the operator's. The first argument is the image whose device and type decide.
template <class Name, class Result, class... Args, Result (*kComposite)(Args...), bool kHoldsConvs>
struct Chosen<Name, kComposite, kHoldsConvs> {
  using Call = std::tuple<const std::decay_t<Args>&...>;

  static Result run(Args... args) {
    const auto kernel = DeviceKernel<kComposite>::get();
    const Call call(args...);
    const at::Tensor& images = std::get<0>(call);
    const bool by_triton = kHoldsConvs && forced_backend() == "triton";
    const bool nothing_to_choose = !kernel && forced_backend() != "cuda" && !by_triton;
    if (nothing_to_choose || forced_backend() == "aten" || images.numel() == 0) return kComposite(args...);
    Key key(Name::value, images);
    (key.add(args), ...);
    return run_chosen<Call, Result>(Name::value, key.text(), images.device(), call, [&] {
      return Backends<Call, Result>{
          {by_triton ? "triton" : "cuda", why_no_cuda(kernel),
           [kernel](const Call& call) { return std::apply(kernel, call); }},
          {"aten", "", [](const Call& call) { return std::apply(kComposite, call); }}};
    });
  }
};

}  // namespace cnnfast::gpu
