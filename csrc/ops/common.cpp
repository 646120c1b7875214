#include "ops/common.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <cstdlib>
#include <string>

namespace cnnfast {

namespace {

// How an activation is written: its name, and how many numbers may stand in parentheses behind it.
struct ActivationWord {
  const char* name;
  Activation::Kind kind;
  size_t numbers = 0;
  double a = 0, b = 0;  // the numbers that hold where none are written
};

constexpr double kUnbounded = 3.4028234663852886e38;
const ActivationWord kWords[] = {
    {"none", Activation::kNone},
    {"relu", Activation::kReLU},
    {"sigmoid", Activation::kSigmoid},
    {"relu6", Activation::kClamp, 0, 0, 6},
    {"hardtanh", Activation::kClamp, 2, -1, 1},
    {"leaky_relu", Activation::kLeakyReLU, 1, 0.01},
    {"hardsigmoid", Activation::kHardsigmoid},
    {"hardswish", Activation::kHardswish},
    {"silu", Activation::kSiLU},
    {"tanh", Activation::kTanh},
    {"gelu", Activation::kGELU},
    {"gelu_tanh", Activation::kGELUTanh},
    {"elu", Activation::kELU, 1, 1},
    {"mish", Activation::kMish},
};

// The numbers of "name(1, 2.5)"; none where they cannot be read.
std::optional<std::vector<double>> numbers_of(std::string_view text) {
  std::vector<double> numbers;
  const std::string list(text);
  const char* at = list.c_str();
  while (true) {
    char* end = nullptr;
    const double value = std::strtod(at, &end);
    if (end == at || !(std::fabs(value) <= kUnbounded)) return std::nullopt;
    numbers.push_back(value);
    while (*end == ' ') ++end;
    if (*end == 0) return numbers;
    if (*end != ',') return std::nullopt;
    at = end + 1;
  }
}

bool numbers_fit(const Activation& a) {
  if (a.kind == Activation::kClamp) return a.a <= a.b;
  return true;
}

std::optional<WrittenActivation> read_activation(std::string_view text) {
  const size_t open = text.find('(');
  const std::string_view name = text.substr(0, open);
  for (const ActivationWord& word : kWords) {
    if (name != word.name) continue;
    if (open == std::string_view::npos) return WrittenActivation(word.kind, word.a, word.b);
    if (text.back() != ')') return std::nullopt;
    const auto numbers = numbers_of(text.substr(open + 1, text.size() - open - 2));
    if (!numbers || numbers->size() != word.numbers) return std::nullopt;
    const WrittenActivation activation(word.kind, (*numbers)[0], word.numbers == 2 ? (*numbers)[1] : word.b);
    return numbers_fit(activation) ? std::optional(activation) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

WrittenActivation parse_activation(const char* op, std::string_view text) {
  const auto activation = read_activation(text);
  if (activation) return *activation;
  std::string names;
  for (const ActivationWord& word : kWords) names += (names.empty() ? "" : ", ") + std::string(word.name);
  TORCH_CHECK(false, "cnnfast::", op, ": activation must be one of ", names,
              " (with numbers: leaky_relu(0.2), elu(1.5), hardtanh(-2, 2)), not \"", text, "\"");
}

void check_pre_activation(const char* op, std::string_view name) {
  TORCH_CHECK(output_determines(parse_activation(op, name)), "cnnfast::", op, ": activation ", name,
              " has no gradient by its output alone, as none, relu, sigmoid and others have, which this "
              "operator needs: call it by itself in front");
}

bool output_determines(const Activation& activation) {
  switch (activation.kind) {
    case Activation::kHardswish:
    case Activation::kSiLU:
    case Activation::kGELU:
    case Activation::kGELUTanh:
    case Activation::kMish:
      return false;
    case Activation::kLeakyReLU:
    case Activation::kELU:
      return activation.a >= 0;
    default:
      return true;
  }
}

std::string_view plain_activation_name(Activation::Kind kind) {
  if (kind == Activation::kReLU) return "relu";
  return kind == Activation::kSigmoid ? "sigmoid" : "none";
}

void check_same_kind(const char* op, const at::Tensor& input, const char* name, const OptionalTensor& other) {
  if (!present(other)) return;
  TORCH_CHECK(other->device() == input.device(), "cnnfast::", op, ": input is on ", input.device(), ", but ",
              name, " is on ", other->device());
  TORCH_CHECK(other->scalar_type() == input.scalar_type(), "cnnfast::", op, ": input is ",
              input.scalar_type(), ", but ", name, " is ", other->scalar_type());
}

void check_parameter(const char* op, const at::Tensor& input, const char* name, const OptionalTensor& t) {
  const bool wide = present(t) && t->scalar_type() == at::kFloat && input.scalar_type() == at::kBFloat16 &&
                    t->device() == input.device() && (input.is_cpu() || input.is_meta());
  if (!wide) check_same_kind(op, input, name, t);
}

void check_per_channel(const char* op, const char* name, const OptionalTensor& t,
                       const c10::SymInt& channels) {
  if (!present(t)) return;
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == channels, "cnnfast::", op, ": ", name, " must have shape (",
              channels, "), one number per channel, not ", t->sym_sizes());
}

void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank) {
  TORCH_CHECK(t.dim() == rank, "cnnfast::", op, ": ", name, " must have ", rank, " dimensions, not shape ",
              t.sym_sizes());
}

void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least) {
  TORCH_CHECK(pair.size() == 2, "cnnfast::", op, ": ", name, " must be two numbers, not ", pair);
  TORCH_CHECK(pair[0] >= least && pair[1] >= least, "cnnfast::", op, ": ", name, " must be at least ", least,
              ", not ", pair);
}

c10::SymInt conv_output_size(const c10::SymInt& size, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

at::Tensor activate(const at::Tensor& x, const WrittenActivation& activation) {
  switch (activation.kind) {
    case Activation::kReLU:
      return at::relu(x);
    case Activation::kSigmoid:
      return at::sigmoid(x);
    case Activation::kClamp:
      return at::hardtanh(x, activation.exact_a, activation.exact_b);
    case Activation::kLeakyReLU:
      return at::leaky_relu(x, activation.exact_a);
    case Activation::kHardsigmoid:
      return at::hardsigmoid(x);
    case Activation::kHardswish:
      return at::hardswish(x);
    case Activation::kSiLU:
      return at::silu(x);
    case Activation::kTanh:
      return at::tanh(x);
    case Activation::kGELU:
      return at::gelu(x);
    case Activation::kGELUTanh:
      return at::gelu(x, "tanh");
    case Activation::kELU:
      return at::elu(x, activation.exact_a);
    case Activation::kMish:
      return at::mish(x);
    default:
      return x;
  }
}

at::Tensor activation_backward(const at::Tensor& grad, const at::Tensor& output,
                               const WrittenActivation& activation) {
  switch (activation.kind) {
    case Activation::kReLU:
      return at::threshold_backward(grad, output, 0);
    case Activation::kSigmoid:
      return at::sigmoid_backward(grad, output);
    case Activation::kClamp:
      return at::hardtanh_backward(grad, output, activation.exact_a, activation.exact_b);
    case Activation::kLeakyReLU:
      return at::leaky_relu_backward(grad, output, activation.exact_a, /*self_is_result=*/true);
    case Activation::kHardsigmoid:
      return at::hardtanh_backward(grad / 6, output, 0, 1);
    case Activation::kTanh:
      return at::tanh_backward(grad, output);
    case Activation::kELU:
      return at::elu_backward(grad, activation.exact_a, 1, 1, /*is_result=*/true, output);
    default:
      TORCH_CHECK(output_determines(activation), "cnnfast: this activation's gradient needs its input");
      return grad;
  }
}

at::Tensor gradient_through(const at::Tensor& grad, const at::Tensor& x,
                            const WrittenActivation& activation) {
  switch (activation.kind) {
    case Activation::kHardswish:
      return at::hardswish_backward(grad, x);
    case Activation::kSiLU:
      return at::silu_backward(grad, x);
    case Activation::kGELU:
      return at::gelu_backward(grad, x);
    case Activation::kGELUTanh:
      return at::gelu_backward(grad, x, "tanh");
    case Activation::kMish:
      return at::mish_backward(grad, x);
    case Activation::kLeakyReLU:
      return at::leaky_relu_backward(grad, x, activation.exact_a, /*self_is_result=*/false);
    case Activation::kELU:
      return at::elu_backward(grad, activation.exact_a, 1, 1, /*is_result=*/false, x);
    default:
      return activation_backward(grad, activate(x, activation), activation);
  }
}

at::Tensor as_type(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

OptionalTensor as_type(const OptionalTensor& t, at::ScalarType type) {
  return present(t) ? OptionalTensor(as_type(*t, type)) : t;
}

at::Tensor fresh_channels_last(const at::Tensor& t) {
  return at::empty_symint(t.sym_sizes(), t.options(), at::MemoryFormat::ChannelsLast).copy_(t);
}

at::Tensor own_channels_last(const at::Tensor& fresh) {
  const bool has_layout = fresh.dim() == 4 && !fresh.unsafeGetTensorImpl()->has_symbolic_sizes_strides() &&
                          fresh.strides() == c10::get_channels_last_strides_2d(fresh.sizes());
  return has_layout ? fresh : fresh_channels_last(fresh);
}

bool& records_gradient() {
  thread_local bool recording = false;
  return recording;
}

at::Tensor no_gradient(const at::Tensor& like) { return at::empty({0}, like.options()); }

}  // namespace cnnfast
