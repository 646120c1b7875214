// What an operator applies to its result last. Plain enough for kernels of every kind to include.
#pragma once
#include <stdint.h>

namespace cnnfast {

struct Activation {
  enum Kind : int32_t {
    kNone = 0,
    kReLU = 1,
    kSigmoid = 2,
    kClamp = 3,      // into [a, b]: ReLU6, Hardtanh
    kLeakyReLU = 4,  // x, or a * x where x is negative
    kHardsigmoid = 5,
    kHardswish = 6,
    kSiLU = 7,
    kTanh = 8,
    kGELU = 9,
    kGELUTanh = 10,
    kELU = 11,  // x, or a * (e^x - 1) where x is negative
    kMish = 12,
    kKinds
  };
  Kind kind = kNone;
  float a = 0.0f, b = 0.0f;
};

}  // namespace cnnfast
