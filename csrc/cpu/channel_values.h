// Parameters and statistics with one value per channel.
#pragma once
#include <ATen/Functions.h>

#include <algorithm>
#include <vector>

#include "ops/common.h"

namespace cnnfast::cpu {

// Those of a float32 tensor, or one value for all channels where there is none.
class ChannelValues {
 public:
  ChannelValues(const OptionalTensor& t, double otherwise)
      : values_(present(t) ? t->contiguous() : at::Tensor()), otherwise_(otherwise) {}
  double operator[](int64_t c) const {
    return values_.defined() ? values_.const_data_ptr<float>()[c] : otherwise_;
  }

 private:
  at::Tensor values_;
  double otherwise_;
};

// As float32, whatever type the options have.
inline at::Tensor channel_tensor(const std::vector<double>& values, const at::TensorOptions& options) {
  const at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, options.dtype(at::kFloat));
  std::copy(values.begin(), values.end(), t.data_ptr<float>());
  return t;
}

}  // namespace cnnfast::cpu
