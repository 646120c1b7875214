#include "gpu/key.h"

#include <ATen/Context.h>

#include <algorithm>
#include <charconv>

#include "gpu/nhwc.h"
#include "gpu/triton/launch.h"

namespace cnnfast::gpu {
namespace {

template <typename Number>
void append(std::string& text, Number number) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
  text.append(digits, end);
}

void append(std::string& text, at::IntArrayRef numbers) {
  text += '[';
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i) text += ", ";
    append(text, numbers[i]);
  }
  text += ']';
}

}  // namespace

Key::Key(std::string_view op, const at::Tensor& images) : text_(op) {
  const int device = std::max<int>(images.device().index(), 0);
  add(find_driver().driver ? std::string_view(device_facts(device).name) : "-");
  add(std::string_view(c10::toString(images.scalar_type())));
  if (images.scalar_type() == at::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV))
    add("tf32");
  // Some of ATen's kernels refuse to run then.
  if (at::globalContext().deterministicAlgorithms()) add("deterministic");
}

Key& Key::add(std::string_view word) {
  text_ += ' ';
  text_ += word;
  return *this;
}

Key& Key::add(int64_t number) {
  text_ += ' ';
  append(text_, number);
  return *this;
}

Key& Key::add(double number) {
  text_ += ' ';
  append(text_, number);
  return *this;
}

Key& Key::add(at::IntArrayRef numbers) {
  text_ += ' ';
  append(text_, numbers);
  return *this;
}

Key& Key::add(const at::Tensor& t) {
  if (!t.defined()) return add("-");
  add(std::string_view(c10::toString(t.scalar_type())));
  append(text_, t.sizes());
  if (t.dim() != 4) return *this;
  text_ += '/';
  if (const auto stride = pixel_stride(t)) {
    append(text_, *stride);
    if (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16) text_ += 'u';
  } else {
    text_ += "copy";
  }
  return *this;
}

Key& Key::add(const std::optional<at::Tensor>& t) { return add(t ? *t : at::Tensor()); }

Key& Key::add(at::TensorList tensors) {
  for (const at::Tensor& t : tensors) add(t);
  return *this;
}

Key& Key::add(const c10::List<std::optional<at::Tensor>>& tensors) {
  for (const std::optional<at::Tensor>& t : tensors) add(t);
  return *this;
}

Key& Key::add(const std::optional<int64_t>& number) { return number ? add(*number) : add("-"); }

Key& Key::add(const c10::List<bool>& flags) {
  text_ += ' ';
  for (const bool flag : flags) text_ += flag ? '1' : '0';
  return *this;
}

}  // namespace cnnfast::gpu
