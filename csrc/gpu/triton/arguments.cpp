#include "gpu/triton/arguments.h"

#include <cstring>
#include <limits>
#include <stdexcept>

namespace cnnfast::gpu {
namespace {

const char* name_of(Type type) {
  switch (type) {
    case Type::kFloat32:
      return "float32";
    case Type::kFloat16:
      return "float16";
    case Type::kBFloat16:
      return "bfloat16";
    case Type::kInt32:
      return "int32";
    case Type::kInt64:
      return "int64";
    default:
      return "nothing";
  }
}

bool is_tensor(Type type) { return type >= Type::kFloat32; }

const Argument& argument_of(const Variant& variant, const Parameter& parameter, const Arguments& arguments) {
  const Argument* found = arguments.find(parameter.name);
  if (!found)
    throw std::logic_error("Triton kernel " + std::string(variant.name) + " has a parameter " +
                           std::string(parameter.name) + " that its launcher does not know");
  return *found;
}

std::string quoted(std::string_view name, const std::string& rest) { return std::string(name) + " " + rest; }

std::string misfit_of_passed(const Parameter& p, const Argument& a) {
  const bool tensor = is_tensor(p.type);
  if (tensor != (a.kind == Argument::kTensor)) return quoted(p.name, "is of another kind");
  if (!tensor) {
    if (p.type == Type::kInt32 &&
        (a.number < std::numeric_limits<int32_t>::min() || a.number > std::numeric_limits<int32_t>::max()))
      return quoted(p.name, "= " + std::to_string(a.number) + " needs more than 32 bits");
    if (a.number % p.divisor)
      return quoted(p.name,
                    "= " + std::to_string(a.number) + " is no multiple of " + std::to_string(p.divisor));
    return "";
  }
  if (!a.tensor) return quoted(p.name, "is absent");
  if (a.type != p.type) return quoted(p.name, std::string("is not ") + name_of(p.type));
  if (reinterpret_cast<uintptr_t>(a.tensor) % p.divisor)
    return quoted(p.name, "is not aligned to " + std::to_string(p.divisor) + " bytes");
  return "";
}

std::string misfit_of(const Parameter& p, const Argument& a) {
  switch (p.role) {
    case Role::kPassed:
      return misfit_of_passed(p, a);
    case Role::kNumber:
      if (a.kind == Argument::kNumber && a.number == p.number) return "";
      return quoted(p.name, "is not " + std::to_string(p.number));
    case Role::kWord:
      if (a.kind == Argument::kWord && a.word == p.word) return "";
      return quoted(p.name, "is not " + std::string(p.word));
    case Role::kAbsent:
      return a.kind == Argument::kTensor && !a.tensor ? "" : quoted(p.name, "is present");
    case Role::kFree:
      break;
  }
  return "";
}

}  // namespace

Arguments& Arguments::tensor(std::string_view name, Type type, const void* data) {
  arguments_.push_back({name, Argument::kTensor, type, data, 0, {}});
  return *this;
}

Arguments& Arguments::number(std::string_view name, int64_t value) {
  arguments_.push_back({name, Argument::kNumber, Type::kNone, nullptr, value, {}});
  return *this;
}

Arguments& Arguments::word(std::string_view name, std::string_view value) {
  arguments_.push_back({name, Argument::kWord, Type::kNone, nullptr, 0, value});
  return *this;
}

const Argument* Arguments::find(std::string_view name) const {
  for (const Argument& argument : arguments_)
    if (argument.name == name) return &argument;
  return nullptr;
}

std::optional<Misfit> misfit(const Variant& variant, const Arguments& arguments) {
  for (size_t i = 0; i < variant.parameter_count; ++i) {
    const Parameter& parameter = variant.parameters[i];
    if (parameter.role == Role::kFree) continue;
    std::string reason = misfit_of(parameter, argument_of(variant, parameter, arguments));
    if (!reason.empty()) return Misfit{i, std::move(reason)};
  }
  return std::nullopt;
}

Packed::Packed(const Variant& variant, const Arguments& arguments) {
  slots_.reserve(variant.parameter_count + 2);
  for (size_t i = 0; i < variant.parameter_count; ++i) {
    const Parameter& parameter = variant.parameters[i];
    if (parameter.role != Role::kPassed) continue;
    const Argument& argument = argument_of(variant, parameter, arguments);
    uint64_t slot = 0;
    if (is_tensor(parameter.type)) {
      slot = reinterpret_cast<uintptr_t>(argument.tensor);
    } else if (parameter.type == Type::kInt32) {
      const int32_t number = static_cast<int32_t>(argument.number);
      std::memcpy(&slot, &number, sizeof(number));
    } else {
      std::memcpy(&slot, &argument.number, sizeof(argument.number));
    }
    slots_.push_back(slot);
  }
  slots_.insert(slots_.end(), {0, 0});
  for (uint64_t& slot : slots_) pointers_.push_back(&slot);
}

void Packed::set_scratch(const void* global, const void* profile) {
  slots_[slots_.size() - 2] = reinterpret_cast<uintptr_t>(global);
  slots_[slots_.size() - 1] = reinterpret_cast<uintptr_t>(profile);
}

}  // namespace cnnfast::gpu
