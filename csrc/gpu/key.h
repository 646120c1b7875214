// What a choice of a backend depends on, in words: the key of measured times.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace cnnfast::gpu {

class Key {
 public:
  // Begins with the operator, the device's name and the images' type.
  Key(std::string_view op, const at::Tensor& images);

  Key& add(std::string_view word);
  Key& add(const char* word) { return add(std::string_view(word)); }
  Key& add(int64_t number);
  Key& add(double number);
  Key& add(bool flag) { return add(std::string_view(flag ? "yes" : "no")); }
  Key& add(at::IntArrayRef numbers);
  // Sizes, type, and of images the layout as a kernel meets it: the pixel stride, "copy" where there is none,
  // and whether 16 bytes can be read at once.
  Key& add(const at::Tensor& t);
  Key& add(const std::optional<at::Tensor>& t);
  Key& add(at::TensorList tensors);
  Key& add(const c10::List<std::optional<at::Tensor>>& tensors);
  Key& add(const std::optional<int64_t>& number);
  Key& add(const c10::List<bool>& flags);
  template <size_t kCount>
  Key& add(const std::array<bool, kCount>& flags) {
    text_ += ' ';
    for (const bool flag : flags) text_ += flag ? '1' : '0';
    return *this;
  }

  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace cnnfast::gpu
