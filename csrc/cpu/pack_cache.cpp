#include "cpu/pack_cache.h"

#include <mutex>
#include <unordered_map>

#include "cpu/conv16_job.h"
#include "cpu/widened.h"
#include "ops/common.h"

namespace cnnfast::cpu {
namespace {

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

struct Entry {
  WeakTensor tensor;
  bool current;  // false: only the memory is kept
  uint32_t version;
  const void* data;
  int64_t groups;
  ConvAlgorithm algorithm;
  bool pairs;
  std::shared_ptr<AlignedFloats> packed;
};

std::mutex mutex;
// Never destroyed: tensors held by Python may outlive this library's static objects.
auto& entries = *new std::unordered_map<const c10::TensorImpl*, Entry>;

// At every new entry: packed weights are large.
void sweep() {
  for (auto it = entries.begin(); it != entries.end();)
    it = it->second.tensor.expired() ? entries.erase(it) : std::next(it);
}

// Into `memory` where that has the right size and no other owner: weights of a training change at every step.
std::shared_ptr<AlignedFloats> pack(const at::Tensor& weight, const ConvGeometry& g, bool pairs,
                                    std::shared_ptr<AlignedFloats> memory, bool trained) {
  const at::Tensor wide = widened(weight);
  const float* values = wide.const_data_ptr<float>();
  const int64_t floats = pairs ? pairs_bytes(g) / static_cast<int64_t>(sizeof(float)) : packed_floats(g);
  if (!memory || memory.use_count() != 1 || memory->size() != floats)
    memory = std::make_shared<AlignedFloats>(floats);
  if (pairs)
    pack_pairs_into(g, values, weight_strides(wide), values16(*memory));
  else
    pack_weight_into(g, values, weight_strides(wide), memory->data(), trained);
  return memory;
}

}  // namespace

bool is_trained(const at::Tensor& weight) { return records_gradient() && weight.requires_grad(); }

WeightStrides weight_strides(const at::Tensor& weight) {
  const bool image = weight.dim() == 4;
  return {weight.stride(0), weight.stride(1), image ? weight.stride(2) : 1, image ? weight.stride(3) : 1};
}

namespace {

std::shared_ptr<const AlignedFloats> find_or_pack(const at::Tensor& weight, const ConvGeometry& g,
                                                  bool pairs) {
  if (weight.is_inference()) return pack(weight, g, pairs, nullptr, false);
  const c10::TensorImpl* key = weight.unsafeGetTensorImpl();
  const uint32_t version = weight._version();
  // Fused optimisers write weights without a new version: while training they are packed at every call, and
  // what was packed before is forgotten.
  const bool trained = is_trained(weight);
  std::shared_ptr<AlignedFloats> outdated;
  {
    std::lock_guard lock(mutex);
    const auto it = entries.find(key);
    if (it != entries.end()) {
      Entry& e = it->second;
      // A new tensor may live at the address of a dead one: the weak reference tells.
      const bool same = e.current && !trained && !e.tensor.expired() && e.data == weight.const_data_ptr() &&
                        e.groups == g.groups && e.algorithm == g.algorithm && e.pairs == pairs;
      if (same && e.version == version) return e.packed;
      outdated = std::move(e.packed);
      entries.erase(it);
    }
  }
  auto packed = pack(weight, g, pairs, std::move(outdated), trained);
  std::lock_guard lock(mutex);
  sweep();
  entries.insert_or_assign(key, Entry{WeakTensor(weight.getIntrusivePtr()), !trained, version,
                                      weight.const_data_ptr(), g.groups, g.algorithm, pairs, packed});
  return packed;
}

}  // namespace

std::shared_ptr<const AlignedFloats> packed_weight(const at::Tensor& weight, const ConvGeometry& g) {
  return find_or_pack(weight, g, false);
}

std::shared_ptr<const AlignedFloats> packed_pairs(const at::Tensor& weight, const ConvGeometry& g) {
  return find_or_pack(weight, g, true);
}

void clear_pack_cache() {
  std::lock_guard lock(mutex);
  entries.clear();
}

}  // namespace cnnfast::cpu
