// Arguments of a kernel by name, which variants they fit, and their bytes as the driver wants them.
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "gpu/triton/table.h"

namespace cnnfast::gpu {

struct Argument {
  std::string_view name;
  enum Kind { kTensor, kNumber, kWord } kind;
  Type type;           // of a tensor's elements
  const void* tensor;  // nullptr: absent
  int64_t number;
  std::string_view word;
};

class Arguments {
 public:
  Arguments& tensor(std::string_view name, Type type, const void* data);
  Arguments& number(std::string_view name, int64_t value);
  Arguments& word(std::string_view name, std::string_view value);
  const Argument* find(std::string_view name) const;

 private:
  std::vector<Argument> arguments_;
};

struct Misfit {
  size_t position;  // of the parameter
  std::string reason;
};

// Nothing, or why the variant cannot run with these arguments. Throws std::logic_error where it has a
// parameter that they do not name: the launcher is older than the kernel.
std::optional<Misfit> misfit(const Variant& variant, const Arguments& arguments);

// The values of a kernel call in the order of its parameters: those passed at run time, then the two scratch
// buffers that Triton appends to every kernel.
class Packed {
 public:
  Packed(const Variant& variant, const Arguments& arguments);
  Packed(const Packed&) = delete;  // pointers_ points into slots_
  Packed& operator=(const Packed&) = delete;
  void set_scratch(const void* global, const void* profile);
  void** pointers() { return pointers_.data(); }
  size_t count() const { return pointers_.size(); }

 private:
  std::vector<uint64_t> slots_;
  std::vector<void*> pointers_;
};

}  // namespace cnnfast::gpu
