#include "cpu/normalisation.h"

#include <cmath>

namespace cnnfast::cpu {
namespace {

class ChannelValues {
 public:
  ChannelValues(const OptionalTensor& t, double otherwise)
      : kept_(present(t) ? t->contiguous() : at::Tensor()),
        values_(kept_.defined() ? kept_.const_data_ptr<float>() : nullptr),
        otherwise_(otherwise) {}
  double operator[](int64_t c) const { return values_ ? values_[c] : otherwise_; }

 private:
  at::Tensor kept_;
  const float* values_;
  double otherwise_;
};

}  // namespace

bool all_float(const OptionalTensors& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    const OptionalTensor t = list.get(i);
    if (present(t) && t->scalar_type() != at::kFloat) return false;
  }
  return true;
}

Normalisation::Normalisation(const at::Tensor& mean_, const at::Tensor& var, const OptionalTensor& weight,
                             const OptionalTensor& bias, double eps)
    : scale(mean_.numel()), shift(mean_.numel()), mean(mean_.contiguous()), inverse_std(mean_.numel()) {
  const ChannelValues gamma(weight, 1.0), beta(bias, 0.0), m(mean, 0.0), v(var, 1.0);
  for (int64_t c = 0; c < scale.size(); ++c) {
    inverse_std[c] = 1.0 / std::sqrt(v[c] + eps);
    const double s = gamma[c] * inverse_std[c];
    scale.data()[c] = static_cast<float>(s);
    shift.data()[c] = static_cast<float>(beta[c] - m[c] * s);
  }
}

}  // namespace cnnfast::cpu
