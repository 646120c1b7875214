#include "cpu/pack_cache.h"

#include <mutex>
#include <unordered_map>

namespace cnnfast::cpu {
namespace {

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

struct Entry {
  WeakTensor tensor;
  uint32_t version;
  const void* data;
  int64_t groups;
  ConvAlgorithm algorithm;
  std::shared_ptr<const AlignedFloats> packed;
};

std::mutex mutex;
// Never destroyed: tensors held by Python may outlive this library's static objects.
auto& entries = *new std::unordered_map<const c10::TensorImpl*, Entry>;

// At every new entry: turned weights of a backward pass live for one call, and are large.
void sweep() {
  for (auto it = entries.begin(); it != entries.end();)
    it = it->second.tensor.expired() ? entries.erase(it) : std::next(it);
}

std::shared_ptr<const AlignedFloats> pack(const at::Tensor& weight, const ConvGeometry& g) {
  const at::Tensor dense = weight.contiguous();
  const WeightStrides strides{dense.stride(0), dense.stride(1), dense.dim() == 4 ? dense.stride(2) : 1,
                              dense.dim() == 4 ? dense.stride(3) : 1};
  return std::make_shared<AlignedFloats>(pack_weight(g, dense.const_data_ptr<float>(), strides));
}

}  // namespace

std::shared_ptr<const AlignedFloats> packed_weight(const at::Tensor& weight, const ConvGeometry& g) {
  if (weight.is_inference()) return pack(weight, g);
  const c10::TensorImpl* key = weight.unsafeGetTensorImpl();
  const uint32_t version = weight._version();
  {
    std::lock_guard lock(mutex);
    const auto it = entries.find(key);
    if (it != entries.end()) {
      const Entry& e = it->second;
      // A new tensor may live at the address of a dead one: the weak reference tells.
      if (!e.tensor.expired() && e.version == version && e.data == weight.const_data_ptr() &&
          e.groups == g.groups && e.algorithm == g.algorithm)
        return e.packed;
    }
  }
  auto packed = pack(weight, g);
  std::lock_guard lock(mutex);
  sweep();
  entries.insert_or_assign(key, Entry{WeakTensor(weight.getIntrusivePtr()), version, weight.const_data_ptr(),
                                      g.groups, g.algorithm, packed});
  return packed;
}

void clear_pack_cache() {
  std::lock_guard lock(mutex);
  entries.clear();
}

}  // namespace cnnfast::cpu
