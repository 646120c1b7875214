// Operators of lists of tensors, some of them absent, on their way through an autograd function.
#pragma once
#include "autograd/common.h"

namespace cnnfast {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// All arguments that may want a gradient, one after another; absent ones are undefined.
class ArgumentList {
 public:
  void add(const at::Tensor& t) { tensors_.push_back(t); }
  void add(at::TensorList list) { tensors_.insert(tensors_.end(), list.begin(), list.end()); }
  void add(const OptionalTensors& list) {
    for (size_t i = 0; i < list.size(); ++i) add(value_or_undefined(list.get(i)));
  }

  const std::vector<at::Tensor>& all() const { return tensors_; }
  // What the graph gets edges for: autograd takes defined tensors alone.
  std::vector<at::Tensor> present() const {
    std::vector<at::Tensor> result;
    for (const auto& t : tensors_)
      if (t.defined()) result.push_back(t);
    return result;
  }
  c10::List<bool> presence() const {
    c10::List<bool> result;
    for (const auto& t : tensors_) result.push_back(t.defined());
    return result;
  }
  c10::List<bool> needs() const {
    c10::List<bool> result;
    for (const auto& t : tensors_) result.push_back(t.defined() && t.requires_grad());
    return result;
  }

 private:
  std::vector<at::Tensor> tensors_;
};

// What an autograd function's backward returns: gradients (in the order of the argument list) of those
// arguments that were present, undefined where none is wanted; then `others` for arguments without edges.
inline std::vector<at::Tensor> gradient_list(const c10::List<bool>& presence, const c10::List<bool>& needs,
                                             const std::vector<at::Tensor>& gradients, size_t others) {
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < presence.size(); ++i)
    if (presence.get(i))
      result.push_back(gradients.empty() ? at::Tensor() : gradient_or_none(needs.get(i), gradients[i]));
  result.resize(result.size() + others);
  return result;
}

inline OptionalTensors optionals(at::TensorList list) {
  OptionalTensors result;
  for (const auto& t : list) result.push_back(t.defined() ? OptionalTensor(t) : OptionalTensor());
  return result;
}

}  // namespace cnnfast
