// Activations and their gradients from their results, with ATen's treatment of NaN and of the borders.
#pragma once
#include "activation.h"
#include "cuda/access.cuh"

namespace cnnfast::cuda {

// Of the kinds that has_kernel() names.
__device__ inline float activate(float x, const Activation& activation) {
  switch (activation.kind) {
    case Activation::kReLU:
      return x < 0.0f ? 0.0f : x;  // a comparison keeps NaN, fmaxf does not
    case Activation::kSigmoid:
      return 1.0f / (1.0f + expf(-x));
    case Activation::kClamp:
      return x < activation.a ? activation.a : x > activation.b ? activation.b : x;
    case Activation::kLeakyReLU:
      return x > 0.0f ? x : x * activation.a;
    case Activation::kHardsigmoid: {
      const float shifted = x + 3.0f;
      return (shifted < 0.0f ? 0.0f : shifted > 6.0f ? 6.0f : shifted) / 6.0f;
    }
    case Activation::kHardswish: {
      const float shifted = x + 3.0f;
      return x * (shifted < 0.0f ? 0.0f : shifted > 6.0f ? 6.0f : shifted) / 6.0f;
    }
    case Activation::kSiLU:
      return x / (1.0f + expf(-x));
    case Activation::kELU:
      return x > 0.0f ? x : activation.a * expm1f(x);
    case Activation::kTanh:
      return tanhf(x);
    default:
      return x;
  }
}

// Of the kinds whose gradient the result determines (output_determines in ops/common.h).
__device__ inline float activation_gradient(float grad, float result, const Activation& activation) {
  switch (activation.kind) {
    case Activation::kReLU:
      return result <= 0.0f ? 0.0f : grad;
    case Activation::kSigmoid:
      return grad * (1.0f - result) * result;
    case Activation::kClamp:
      return result <= activation.a || result >= activation.b ? 0.0f : grad;
    case Activation::kLeakyReLU:
      return result > 0.0f ? grad : grad * activation.a;
    case Activation::kHardsigmoid:
      return result <= 0.0f || result >= 1.0f ? 0.0f : grad / 6.0f;
    case Activation::kTanh:
      return grad * (1.0f - result * result);
    case Activation::kELU:
      return result <= 0.0f ? grad * (result + activation.a) : grad;
    default:
      return grad;
  }
}

}  // namespace cnnfast::cuda
