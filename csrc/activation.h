// What an operator applies to its result last. Plain enough for kernels of every kind to include.
#pragma once
#include <stdint.h>

namespace cnnfast {

enum class Activation : int32_t { kNone = 0, kReLU = 1, kSigmoid = 2 };

}  // namespace cnnfast
