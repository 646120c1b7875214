// A CUDA driver library of our own, for tests without a GPU: it reads the parameter layout out of the machine
// code as the real one does, records every launch byte by byte, and computes what a launch asks for (a
// convolution, a gradient, sums of parts) on host memory. What it is told about a kernel (STUB_KERNELS) are
// the names of its parameters, nothing of where they lie.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <elf.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#define STUB extern "C" __attribute__((visibility("default")))

namespace {

enum Error {
  kOk = 0,
  kInvalidValue = 1,
  kNotInitialised = 3,
  kNoDevice = 100,
  kInvalidImage = 200,
  kUnsupportedPtx = 222,
  kNotFound = 500,
  kOutOfResources = 701,
  kCaptureForbids = 900
};

struct Layout {
  std::vector<uint32_t> offsets, sizes;  // by ordinal
};

struct Module {
  uint64_t hash;
  bool is_ptx;
  std::map<std::string, Layout> entries;
};

struct Function {
  Module* module;
  std::string name;
  int max_shared = 48 * 1024;
};

struct Launch {
  std::string function;
  uint64_t hash;
  bool is_ptx;
  unsigned grid[3], block[3], shared;
  uint64_t stream;
  std::vector<std::pair<int, std::vector<uint8_t>>> attributes;
  std::vector<uint8_t> bytes;  // the parameter buffer of the kernel
};

struct State {
  std::recursive_mutex mutex;
  std::map<std::string, long> knobs;
  std::vector<Launch> launches;
  int loads = 0;
  std::string violation;  // what a real driver would have answered with an error or a crash
};
State& state() {
  static auto& instance = *new State;
  return instance;
}

long knob(const char* name, long otherwise) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const auto found = state().knobs.find(name);
  if (found != state().knobs.end()) return found->second;
  const char* value = std::getenv((std::string("STUB_") + name).c_str());
  return value ? std::atol(value) : otherwise;
}

uint64_t fnv(const uint8_t* data, size_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
  return hash;
}

template <typename T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void place(Layout& layout, uint32_t ordinal, uint32_t offset, uint32_t size) {
  if (layout.sizes.size() <= ordinal) layout.sizes.resize(ordinal + 1), layout.offsets.resize(ordinal + 1);
  layout.sizes[ordinal] = size;
  layout.offsets[ordinal] = offset;
}

// Section .nv.info.<entry> lists each parameter (attribute EIATTR_KPARAM_INFO): ordinal, offset, size.
size_t parse_elf(const uint8_t* image, Module& module) {
  const auto header = read<Elf64_Ehdr>(image);
  const auto section = [&](int i) {
    return read<Elf64_Shdr>(image + header.e_shoff + i * header.e_shentsize);
  };
  size_t end = header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
  end = std::max(end, header.e_phoff + size_t{header.e_phnum} * header.e_phentsize);
  const char* names = reinterpret_cast<const char*>(image) + section(header.e_shstrndx).sh_offset;
  const std::string prefix = ".nv.info.";
  for (int i = 0; i < header.e_shnum; ++i) {
    const auto s = section(i);
    if (s.sh_type != SHT_NOBITS) end = std::max(end, size_t{s.sh_offset} + s.sh_size);
    const std::string name = names + s.sh_name;
    if (name.rfind(prefix, 0) != 0) continue;
    Layout& layout = module.entries[name.substr(prefix.size())];
    const uint8_t* at = image + s.sh_offset;
    const uint8_t* stop = at + s.sh_size;
    while (at + 4 <= stop) {
      const uint8_t format = at[0], attribute = at[1];
      const uint16_t size = read<uint16_t>(at + 2);
      constexpr uint8_t kSizedValue = 4, kParameterInfo = 0x17;
      if (format == kSizedValue && attribute == kParameterInfo)
        place(layout, read<uint16_t>(at + 8), read<uint16_t>(at + 10), read<uint32_t>(at + 12) >> 18);
      at += 4 + (format == kSizedValue ? size : 0);
    }
  }
  return end;
}

// .visible .entry name( .param .u64 ... name_param_0, .param .u32 name_param_1, ... )
void parse_ptx(const std::string& text, Module& module) {
  const std::string mark = ".visible .entry ";
  for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1)) {
    const size_t open = text.find('(', at), close = text.find(')', open);
    Layout& layout = module.entries[text.substr(at + mark.size(), open - at - mark.size())];
    std::istringstream words(text.substr(open + 1, close - open - 1));
    std::string word;
    uint32_t offset = 0;
    while (words >> word) {
      if (word != ".param") continue;
      words >> word;
      const uint32_t size = std::atoi(word.c_str() + 2) / 8;
      offset = (offset + size - 1) / size * size;
      place(layout, layout.sizes.size(), offset, size);
      offset += size;
    }
  }
}

struct Known {
  std::string kernel, dtype;
  std::map<std::string, std::string> constants;
  std::vector<std::string> names;

  bool is(const std::string& constant, const std::string& value) const {
    const auto found = constants.find(constant);
    return found != constants.end() && found->second == value;
  }
  int64_t number(const std::string& constant) const { return std::stoll(constants.at(constant)); }
};

// Lines "hash kernel dtype constant=value,... name,name,...".
std::map<uint64_t, Known> read_known() {
  std::map<uint64_t, Known> known;
  const char* path = std::getenv("STUB_KERNELS");
  std::ifstream stream(path ? path : "");
  std::string hash, constants, names, word;
  Known entry;
  while (stream >> hash >> entry.kernel >> entry.dtype >> constants >> names) {
    entry.names.clear();
    entry.constants.clear();
    std::istringstream list(names), values(constants);
    while (std::getline(list, word, ',')) entry.names.push_back(word);
    while (std::getline(values, word, ','))
      entry.constants[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
    known[std::stoull(hash, nullptr, 16)] = entry;
  }
  return known;
}

struct Values {
  std::map<std::string, int64_t> by_name;
  int64_t operator[](const std::string& name) const {
    const auto found = by_name.find(name);
    return found == by_name.end() ? 0 : found->second;
  }
  template <typename T>
  T* at(const std::string& name) const {
    return reinterpret_cast<T*>((*this)[name]);
  }
};

template <typename T>
double rounded(double value) {
  return static_cast<float>(static_cast<T>(static_cast<float>(value)));
}

// Calls use(output pixel, input pixel, tap) wherever a tap of an output pixel lies inside the image.
template <typename Use>
void for_taps(const Values& v, int64_t pixels, Use use) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t ox = pixel % v["out_w"], oy = pixel / v["out_w"] % v["out_h"];
    const int64_t image = pixel / v["out_w"] / v["out_h"];
    for (int64_t tap = 0; tap < v["kernel_h"] * v["kernel_w"]; ++tap) {
      const int64_t row = oy * v["stride_h"] - v["pad_h"] + tap / v["kernel_w"] * v["dilation_h"];
      const int64_t column = ox * v["stride_w"] - v["pad_w"] + tap % v["kernel_w"] * v["dilation_w"];
      if (row >= 0 && row < v["in_h"] && column >= 0 && column < v["in_w"])
        use(pixel, (image * v["in_h"] + row) * v["in_w"] + column, tap);
    }
  }
}

// Mean and sum of squares around it, of each tile of BLOCK_M pixels.
template <typename T>
void part_statistics(const Values& v, int64_t block, int64_t channels) {
  float* parts = v.at<float>("parts_ptr");
  const T* y = v.at<T>("y_ptr");
  for (int64_t first = 0; first < v["pixels"]; first += block) {
    const int64_t last = std::min(first + block, v["pixels"]);
    for (int64_t c = 0; c < channels; ++c) {
      double mean = 0, squares = 0;
      for (int64_t p = first; p < last; ++p) mean += float(y[p * v["y_stride"] + c]);
      mean /= double(last - first);
      for (int64_t p = first; p < last; ++p) {
        const double distance = float(y[p * v["y_stride"] + c]) - mean;
        squares += distance * distance;
      }
      float* part = parts + first / block * 2 * channels + c;
      part[0] = static_cast<float>(mean);
      part[channels] = static_cast<float>(squares);
    }
  }
}

// What each kernel is documented to compute, one element at a time.
template <typename T>
void convolve(const Values& v, const Known& kernel) {
  const T *x = v.at<T>("x_ptr"), *w = v.at<T>("w_ptr"), *residual = v.at<T>("residual_ptr");
  const float *bias = v.at<float>("bias_ptr"), *scale = v.at<float>("scale_ptr");
  const float *pre_scale = v.at<float>("pre_scale_ptr"), *pre_shift = v.at<float>("pre_shift_ptr");
  T* y = v.at<T>("y_ptr");
  const int64_t ic = v["in_channels"], oc = v["out_channels"], taps = v["kernel_h"] * v["kernel_w"];
  const int64_t channels = oc * v["groups"];
  std::vector<double> sums(v["pixels"] * channels);
  for_taps(v, v["pixels"], [&](int64_t pixel, int64_t from, int64_t tap) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < ic; ++i) {
        const int64_t place = c / oc * ic + i;
        double value = float(x[from * v["x_stride"] + place]);
        if (pre_scale) {
          value = value * pre_scale[place] + pre_shift[place];
          if (kernel.is("PRE_RELU", "1") && value < 0) value = 0;
          value = rounded<T>(value);
        }
        sums[pixel * channels + c] += value * float(w[(c * taps + tap) * ic + i]);
      }
  });
  for (int64_t pixel = 0; pixel < v["pixels"]; ++pixel)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = sums[pixel * channels + c];
      if (scale) sum *= scale[c];
      if (bias) sum += bias[c];
      if (residual) sum += float(residual[pixel * v["residual_stride"] + c]);
      if (kernel.is("ACTIVATION", "relu")) sum = sum < 0 ? 0 : sum;
      y[pixel * v["y_stride"] + c] = static_cast<T>(static_cast<float>(sum));
    }
  if (v["parts_ptr"]) part_statistics<T>(v, kernel.number("BLOCK_M"), channels);
}

template <typename T>
void input_gradient(const Values& v) {
  const T *dy = v.at<T>("dy_ptr"), *w = v.at<T>("w_ptr");
  T* dx = v.at<T>("dx_ptr");
  const int64_t ic = v["in_channels"], oc = v["out_channels"], taps = v["kernel_h"] * v["kernel_w"];
  const int64_t channels = ic * v["groups"], pixels = v["batch"] * v["in_h"] * v["in_w"];
  std::vector<double> sums(pixels * channels);
  for_taps(v, v["batch"] * v["out_h"] * v["out_w"], [&](int64_t pixel, int64_t to, int64_t tap) {
    for (int64_t c = 0; c < oc * v["groups"]; ++c)
      for (int64_t i = 0; i < ic; ++i)
        sums[to * channels + c / oc * ic + i] +=
            double(float(dy[pixel * v["dy_stride"] + c])) * float(w[(c * taps + tap) * ic + i]);
  });
  for (int64_t pixel = 0; pixel < pixels; ++pixel)
    for (int64_t c = 0; c < channels; ++c)
      dx[pixel * v["dx_stride"] + c] = static_cast<T>(static_cast<float>(sums[pixel * channels + c]));
}

// Every part's sum of its own pixels.
template <typename T>
void weight_gradient(const Values& v) {
  const T *dy = v.at<T>("dy_ptr"), *x = v.at<T>("x_ptr");
  const int64_t ic = v["in_channels"], oc = v["out_channels"], taps = v["kernel_h"] * v["kernel_w"];
  const int64_t numel = oc * v["groups"] * taps * ic;
  const int64_t parts = (v["pixels"] + v["part_pixels"] - 1) / v["part_pixels"];
  std::vector<double> sums(parts * numel);
  for_taps(v, v["pixels"], [&](int64_t pixel, int64_t from, int64_t tap) {
    for (int64_t c = 0; c < oc * v["groups"]; ++c)
      for (int64_t i = 0; i < ic; ++i)
        sums[pixel / v["part_pixels"] * numel + (c * taps + tap) * ic + i] +=
            double(float(dy[pixel * v["dy_stride"] + c])) * float(x[from * v["x_stride"] + c / oc * ic + i]);
  });
  std::copy(sums.begin(), sums.end(), v.at<float>("parts_ptr"));
}

template <typename T>
void sum_parts(const Values& v) {
  const float* parts = v.at<float>("parts_ptr");
  for (int64_t i = 0; i < v["numel"]; ++i) {
    float sum = 0;
    for (int64_t part = 0; part < v["parts"]; ++part) sum += parts[part * v["numel"] + i];
    v.at<T>("sum_ptr")[i] = static_cast<T>(sum);
  }
}

// ROWS parts into one: the last level gives the variance.
void combine(const Values& v, const Known& kernel) {
  const float* parts = v.at<float>("parts_ptr");
  const int64_t channels = v["channels"], rows = kernel.number("ROWS");
  for (int64_t first = 0; first < v["parts"]; first += rows)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t end = std::min(first + rows, v["parts"]);
      const auto count = [&](int64_t part) {
        return double(std::min(v["pixels"] - part * v["part_pixels"], v["part_pixels"]));
      };
      double mean = 0, squares = 0, all = 0;
      for (int64_t p = first; p < end; ++p) mean += count(p) * parts[p * 2 * channels + c], all += count(p);
      mean /= all;
      for (int64_t p = first; p < end; ++p) {
        const double distance = parts[p * 2 * channels + c] - mean;
        squares += parts[(p * 2 + 1) * channels + c] + count(p) * distance * distance;
      }
      if (kernel.is("LAST", "1")) squares /= all;
      float* to = v.at<float>("joined_ptr") + first / rows * 2 * channels + c;
      to[0] = static_cast<float>(mean);
      to[channels] = static_cast<float>(squares);
    }
}

int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Programs that a call takes, by the comments at the kernels' heads.
int64_t programs(const Values& v, const Known& k) {
  if (k.kernel == "sum_parts") return tiles(v["numel"], k.number("BLOCK"));
  if (k.kernel == "combine")
    return tiles(v["parts"], k.number("ROWS")) * tiles(v["channels"], k.number("COLUMNS"));
  const int64_t m = k.number("BLOCK_M"), n = k.number("BLOCK_N"), taps = v["kernel_h"] * v["kernel_w"];
  if (k.kernel == "conv2d") return tiles(v["pixels"], m) * tiles(v["out_channels"], n) * v["groups"];
  if (k.kernel == "conv2d_input_grad") {
    const int64_t phases = v["stride_h"] * v["stride_w"];
    const int64_t pixels = v["batch"] * tiles(v["in_h"], v["stride_h"]) * tiles(v["in_w"], v["stride_w"]);
    return tiles(pixels, m) * phases * tiles(v["in_channels"], n) * v["groups"];
  }
  const int64_t columns =
      k.is("ACROSS_TAPS", "1") ? tiles(taps * v["in_channels"], n) : taps * tiles(v["in_channels"], n);
  return tiles(v["out_channels"], m) * columns * v["groups"] * tiles(v["pixels"], v["part_pixels"]);
}

// What a kernel relies on and this driver does not need.
std::string violation_of(const Launch& launch, const Values& v, const Known& k) {
  const int64_t wanted = programs(v, k), found = int64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
  // A cluster's blocks are one program.
  const int64_t blocks = launch.attributes.empty() ? 1 : found / wanted;
  if (found != wanted * blocks)
    return k.kernel + " has " + std::to_string(found) + " programs, needs " + std::to_string(wanted);
  if (k.kernel == "conv2d_input_grad")
    for (const std::string way : {"h", "w"}) {
      const int64_t stride = v["stride_" + way], step = stride / std::gcd(stride, v["dilation_" + way]);
      if (v["tap_step_" + way] != step) return "tap_step_" + way + " is not " + std::to_string(step);
      if (stride != 1 && !k.is("STRIDED", "1")) return "the kernel is for stride 1";
    }
  if (k.kernel == "conv2d_weight_grad" && v["part_pixels"] % k.number("BLOCK_K"))
    return "part_pixels is no multiple of BLOCK_K";
  const bool pointwise = v["kernel_h"] * v["kernel_w"] == 1 && v["pad_h"] == 0 && v["pad_w"] == 0;
  if (k.is("POINTWISE", "1") && !pointwise) return "the kernel is for 1x1 convolutions without padding";
  return "";
}

template <typename T>
void compute(const Values& values, const Known& kernel) {
  if (kernel.kernel == "conv2d") convolve<T>(values, kernel);
  if (kernel.kernel == "conv2d_input_grad") input_gradient<T>(values);
  if (kernel.kernel == "conv2d_weight_grad") weight_gradient<T>(values);
  if (kernel.kernel == "sum_parts") sum_parts<T>(values);
  if (kernel.kernel == "combine") combine(values, kernel);
}

void compute(const Launch& launch, const Layout& layout) {
  static const auto& known = *new std::map<uint64_t, Known>(read_known());
  const auto found = known.find(launch.hash);
  if (found == known.end()) return;
  const Known& kernel = found->second;
  if (kernel.names.size() != layout.sizes.size()) {
    state().violation = "the kernel has " + std::to_string(layout.sizes.size()) + " parameters, and " +
                        std::to_string(kernel.names.size()) + " names are known";
    return;
  }
  Values values;
  for (size_t i = 0; i < kernel.names.size(); ++i) {
    const uint8_t* at = launch.bytes.data() + layout.offsets[i];
    values.by_name[kernel.names[i]] = layout.sizes[i] == 8 ? read<int64_t>(at) : read<int32_t>(at);
  }
  if (const std::string text = violation_of(launch, values, kernel); !text.empty()) state().violation = text;
  if (kernel.dtype == "float16") compute<c10::Half>(values, kernel);
  if (kernel.dtype == "bfloat16") compute<c10::BFloat16>(values, kernel);
  if (kernel.dtype == "float32") compute<float>(values, kernel);
}

int launch(Function* function, const unsigned grid[3], const unsigned block[3], unsigned shared, void* stream,
           void** parameters, std::vector<std::pair<int, std::vector<uint8_t>>> attributes) {
  if (knob("FAIL_LAUNCH", 0)) return kOutOfResources;
  if (static_cast<int>(shared) > function->max_shared) return kInvalidValue;
  const Layout& layout = function->module->entries[function->name];
  Launch record{function->name,
                function->module->hash,
                function->module->is_ptx,
                {grid[0], grid[1], grid[2]},
                {block[0], block[1], block[2]},
                shared,
                reinterpret_cast<uint64_t>(stream),
                std::move(attributes),
                {}};
  for (size_t i = 0; i < layout.sizes.size(); ++i) {
    record.bytes.resize(layout.offsets[i] + layout.sizes[i]);
    std::memcpy(record.bytes.data() + layout.offsets[i], parameters[i], layout.sizes[i]);
  }
  if (knob("COMPUTE", 1)) compute(record, layout);
  std::this_thread::sleep_for(std::chrono::milliseconds(knob("DELAY_MS", 0)));
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().launches.push_back(std::move(record));
  return kOk;
}

thread_local void* current_context = nullptr;
int context_of_device;

}  // namespace

// The driver's interface, as far as the launcher and Triton's own launcher use it.
STUB int cuInit(unsigned) { return knob("FAIL_INIT", 0) ? kNoDevice : kOk; }
STUB int cuDriverGetVersion(int* version) { return *version = 13000, kOk; }
STUB int cuGetErrorName(int error, const char** name) {
  *name = error == kUnsupportedPtx   ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
          : error == kNoDevice       ? "CUDA_ERROR_NO_DEVICE"
          : error == kOutOfResources ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
          : error == kInvalidImage   ? "CUDA_ERROR_INVALID_IMAGE"
                                     : "CUDA_ERROR_STUB";
  return kOk;
}
STUB int cuGetErrorString(int, const char** text) { return *text = "the stub was told to fail", kOk; }
STUB int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, kOk; }
STUB int cuDeviceGetCount(int* count) { return *count = 1, kOk; }
STUB int cuDeviceGetName(char* name, int bytes, int) { return std::strncpy(name, "Stub GPU", bytes), kOk; }
STUB int cuDeviceGetAttribute(int* value, int attribute, int) {
  const long arch = knob("ARCH", 80);
  switch (attribute) {
    case 75:
      *value = arch / 10;
      break;
    case 76:
      *value = arch % 10;
      break;
    case 16:
      *value = 108;
      break;
    case 97:
      *value = knob("SHARED", 163 * 1024);
      break;
    default:
      *value = 0;
  }
  return kOk;
}
STUB int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &context_of_device, kOk; }
STUB int cuCtxGetCurrent(void** context) { return *context = current_context, kOk; }
STUB int cuCtxSetCurrent(void* context) { return current_context = context, kOk; }
STUB int cuModuleLoadDataEx(void** module, const void* image, unsigned options, const int* names,
                            void** values) {
  if (!current_context) return kNotInitialised;
  if (knob("CAPTURING", 0) && knob("capture_mode", 0) != 2) return kCaptureForbids;
  const auto* bytes = static_cast<const uint8_t*>(image);
  auto* loaded = new Module{};
  loaded->is_ptx = std::memcmp(bytes, ELFMAG, SELFMAG) != 0;
  if (knob(loaded->is_ptx ? "FAIL_PTX" : "FAIL_LOAD", 0)) {
    for (unsigned i = 0; i < options; ++i)
      if (names[i] == 5) std::strcpy(static_cast<char*>(values[i]), "ptxas fatal: words from the compiler");
    return loaded->is_ptx ? kUnsupportedPtx : kInvalidImage;
  }
  size_t size = 0;
  if (loaded->is_ptx) {
    size = std::strlen(static_cast<const char*>(image));
    parse_ptx(static_cast<const char*>(image), *loaded);
  } else {
    size = parse_elf(bytes, *loaded);
  }
  loaded->hash = fnv(bytes, size);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // for a second thread to come too early
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  ++state().loads;
  return *module = loaded, kOk;
}
STUB int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto* from = static_cast<Module*>(module);
  if (!from->entries.count(name)) return kNotFound;
  return *function = new Function{from, name}, kOk;
}
STUB int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute == 8) {
    if (value > knob("SHARED", 163 * 1024)) return kInvalidValue;
    static_cast<Function*>(function)->max_shared = value;
    return kOk;
  }
  return attribute == 14 ? kOk : kInvalidValue;
}
STUB int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  if (extra) return kInvalidValue;
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  return launch(static_cast<Function*>(function), grid, block, shared, stream, parameters, {});
}
struct Attribute {
  int id, padding;
  uint8_t value[64];
};
struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  Attribute* attributes;
  unsigned count;
};
STUB int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
  if (extra) return kInvalidValue;
  std::vector<std::pair<int, std::vector<uint8_t>>> attributes;
  for (unsigned i = 0; i < config->count; ++i) {
    const Attribute& a = config->attributes[i];
    attributes.emplace_back(a.id, std::vector<uint8_t>(a.value, a.value + 12));
  }
  return launch(static_cast<Function*>(function), config->grid, config->block, config->shared, config->stream,
                parameters, std::move(attributes));
}
STUB int cuStreamIsCapturing(void*, int* status) { return *status = knob("CAPTURING", 0), kOk; }
STUB int cuThreadExchangeStreamCaptureMode(int* mode) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const int before = knob("capture_mode", 0);
  state().knobs["capture_mode"] = *mode;
  return *mode = before, kOk;
}
// Triton's own launcher links these and calls none of them in a launch.
STUB int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, kOk; }
STUB int cuFuncSetCacheConfig(void*, int) { return kOk; }
STUB int cuModuleLoadData(void** module, const void* image) {
  return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}
STUB int cuModuleUnload(void*) { return kOk; }
STUB int cuCtxGetDevice(int* device) { return *device = 0, kOk; }
STUB int cuCtxGetLimit(size_t* value, int) { return *value = 0, kOk; }
STUB int cuCtxSetLimit(int, size_t) { return kOk; }
STUB int cuPointerGetAttribute(void* value, int, uint64_t pointer) {
  return *static_cast<uint64_t*>(value) = pointer, kOk;  // a host pointer of the device: itself
}

// For the tests.
STUB void stub_set(const char* name, long value) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().knobs[name] = value;
}
// Sizes of an entry's parameters in order, as the code has them.
STUB const char* stub_layout(const void* image, const char* entry) {
  static std::string text;
  Module module{};
  if (std::memcmp(image, ELFMAG, SELFMAG) == 0)
    parse_elf(static_cast<const uint8_t*>(image), module);
  else
    parse_ptx(static_cast<const char*>(image), module);
  text.clear();
  for (const uint32_t size : module.entries[entry].sizes)
    text += (text.empty() ? "" : " ") + std::to_string(size);
  return text.c_str();
}
STUB int stub_loads() { return state().loads; }
STUB int stub_launches() { return static_cast<int>(state().launches.size()); }
STUB const char* stub_violation() { return state().violation.c_str(); }
// Launch i as words: function, whether PTX, grid, block, shared bytes, stream, parameter bytes, attributes.
STUB const char* stub_launch(int i) {
  static std::string text;
  const Launch& l = state().launches[i];
  std::ostringstream out;
  const auto hex = [&](const std::vector<uint8_t>& bytes) {
    static const char* digits = "0123456789abcdef";
    for (const uint8_t b : bytes) out << digits[b >> 4] << digits[b & 15];
  };
  out << l.function << ' ' << l.is_ptx;
  for (const unsigned n : {l.grid[0], l.grid[1], l.grid[2], l.block[0], l.block[1], l.block[2], l.shared})
    out << ' ' << n;
  out << ' ' << l.stream << ' ';
  hex(l.bytes);
  for (const auto& [id, bytes] : l.attributes) {
    out << ' ' << id << ':';
    hex(bytes);
  }
  return (text = out.str()).c_str();
}
