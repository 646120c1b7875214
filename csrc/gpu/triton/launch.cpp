#include "gpu/triton/launch.h"

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu/triton/unpack.h"

namespace cnnfast::gpu {
namespace {

constexpr int kFreeSharedBytes = 48 * 1024;  // what a kernel may have without being asked
constexpr int kWarp = 32;
constexpr int kPortableCtas = 8;  // larger clusters need the function's consent
constexpr size_t kLogBytes = 4096;

int attribute(int device, CuDeviceAttribute which) {
  int value = 0;
  check(driver().cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

DeviceFacts ask(int ordinal) {
  int device = 0;
  check(driver().cuDeviceGet(&device, ordinal), "cuDeviceGet");
  char name[256] = "";
  check(driver().cuDeviceGetName(name, sizeof(name), device), "cuDeviceGetName");
  return {10 * attribute(device, kCapabilityMajor) + attribute(device, kCapabilityMinor),
          attribute(device, kProcessors), attribute(device, kSharedBytesPerBlockOptin), name};
}

// Torch has made the device's primary context current in every thread that holds its tensors; a thread that
// has none yet gets it here.
void ensure_context(int ordinal) {
  CuContext* context = nullptr;
  check(driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  if (context) return;
  int device = 0;
  check(driver().cuDeviceGet(&device, ordinal), "cuDeviceGet");
  check(driver().cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  check(driver().cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

// Loading allocates, which a strict capture of a CUDA graph in any stream of the thread would forbid.
class RelaxedCapture {
 public:
  RelaxedCapture() { check(driver().cuThreadExchangeStreamCaptureMode(&mode_), "stream capture mode"); }
  ~RelaxedCapture() { driver().cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  int mode_ = kCaptureModeRelaxed;
};

CuFunction* load(const Variant& variant, const Image& image) {
  const RelaxedCapture relaxed;
  const std::vector<char> code = unpack(image);
  std::vector<char> log(kLogBytes, '\0');
  const int names[] = {kJitErrorLog, kJitErrorLogBytes};
  void* values[] = {log.data(), reinterpret_cast<void*>(log.size())};
  const std::string what = "Triton kernel " + std::string(variant.name) +
                           (image.ptx ? " (PTX for sm_" : " (for sm_") + std::to_string(image.arch) + ")";
  CuModule* module = nullptr;
  const int error = driver().cuModuleLoadDataEx(&module, code.data(), 2, names, values);
  const std::string words = log[0] ? ", \"" + std::string(log.data()) + "\"" : "";
  check(error, what + ": loading it" + words);
  CuFunction* function = nullptr;
  check(driver().cuModuleGetFunction(&function, module, std::string(variant.entry).c_str()),
        what + ": finding its entry");
  if (image.shared_bytes > kFreeSharedBytes)
    check(driver().cuFuncSetAttribute(function, kMaxDynamicSharedBytes, image.shared_bytes),
          what + ": asking for " + std::to_string(image.shared_bytes) + " bytes of shared memory");
  if (image.ctas > kPortableCtas)
    check(driver().cuFuncSetAttribute(function, kNonPortableClusterAllowed, 1),
          what + ": asking for a cluster of " + std::to_string(image.ctas));
  return function;
}

// A function per image and device, loaded once: the second thread waits for the first. What failed is not
// tried again at every call.
struct Loaded {
  std::once_flag once;
  CuFunction* function = nullptr;
  std::string failure;
};

CuFunction* function_of(const Variant& variant, const Image& image, int device) {
  static std::mutex mutex;
  static auto& functions = *new std::map<std::pair<int, const Image*>, Loaded>;  // outlives every thread
  Loaded* loaded;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    loaded = &functions[{device, &image}];
  }
  std::call_once(loaded->once, [&] {
    try {
      loaded->function = load(variant, image);
    } catch (const DriverError& error) {
      loaded->failure = error.what();
    }
  });
  if (!loaded->function) throw DriverError(loaded->failure);
  return loaded->function;
}

void launch_plain(CuFunction* function, const Image& image, Grid grid, CuStream stream, void** parameters,
                  const std::string& what) {
  check(driver().cuLaunchKernel(function, grid.x, grid.y, grid.z, kWarp * image.warps, 1, 1,
                                image.shared_bytes, stream, parameters, nullptr),
        what);
}

CuLaunchAttribute number_attribute(CuLaunchAttributeId id, int number) {
  CuLaunchAttribute attribute{};
  attribute.id = id;
  attribute.value.number = number;
  return attribute;
}

void launch_extended(CuFunction* function, const Image& image, Grid grid, CuStream stream, void** parameters,
                     const std::string& what) {
  if (!driver().cuLaunchKernelEx) throw DriverError(what + " needs a driver of CUDA 11.8 or later");
  std::vector<CuLaunchAttribute> attributes;
  if (image.dependent) attributes.push_back(number_attribute(kLaunchProgrammaticSerialization, 1));
  if (image.cooperative) attributes.push_back(number_attribute(kLaunchCooperative, 1));
  if (image.ctas != 1) {
    CuLaunchAttribute cluster{};
    cluster.id = kLaunchClusterDimension;
    cluster.value.cluster = {static_cast<unsigned>(image.ctas), 1, 1};
    attributes.push_back(cluster);
    attributes.push_back(number_attribute(kLaunchClusterPolicy, kClusterPolicySpread));
  }
  const CuLaunchConfig config{grid.x * image.ctas,
                              grid.y,
                              grid.z,
                              static_cast<unsigned>(kWarp * image.warps),
                              1,
                              1,
                              static_cast<unsigned>(image.shared_bytes),
                              stream,
                              attributes.data(),
                              static_cast<unsigned>(attributes.size())};
  check(driver().cuLaunchKernelEx(&config, function, parameters, nullptr), what);
}

}  // namespace

const DeviceFacts& device_facts(int device) {
  static std::mutex mutex;
  static auto& facts = *new std::map<int, DeviceFacts>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = facts.find(device);
  return found != facts.end() ? found->second : facts.emplace(device, ask(device)).first->second;
}

const Image* image_for(const Variant& variant, const DeviceFacts& device, std::string* reason) {
  const Image* best = nullptr;
  for (size_t i = 0; i < variant.image_count; ++i) {
    const Image& image = variant.images[i];
    const bool same_major = image.arch / 10 == device.arch / 10;
    const bool runs = image.arch == device.arch                         ? true
                      : image.arch > device.arch || image.arch_specific ? false
                      : image.ptx                                       ? true
                                                                        : same_major;
    if (!runs || image.shared_bytes > device.shared_bytes) continue;
    // Machine code before PTX, then the nearest architecture.
    if (!best || std::pair(!image.ptx, image.arch) > std::pair(!best->ptx, best->arch)) best = &image;
  }
  if (!best && reason)
    *reason = "Triton kernel " + std::string(variant.name) + " has no code for sm_" +
              std::to_string(device.arch) + " (" + device.name + ") within its " +
              std::to_string(device.shared_bytes) + " bytes of shared memory";
  return best;
}

bool is_capturing(CuStream stream) {
  int status = kCaptureNone;
  // The default stream answers with an error while another one is being captured: no time for experiments
  // either.
  return driver().cuStreamIsCapturing(stream, &status) != 0 || status != kCaptureNone;
}

void launch(const Variant& variant, const Image& image, Packed& arguments, Grid grid, int device,
            CuStream stream, const ScratchAllocator& allocate) {
  const uint64_t programs = uint64_t{grid.x} * grid.y * grid.z;
  if (programs == 0) return;
  ensure_context(device);
  CuFunction* function = function_of(variant, image, device);
  const auto scratch = [&](size_t bytes, size_t alignment) -> void* {
    return bytes ? allocate(bytes * image.ctas * programs, alignment) : nullptr;
  };
  arguments.set_scratch(scratch(image.global_scratch, image.global_scratch_align),
                        scratch(image.profile_scratch, image.profile_scratch_align));
  const std::string what = "launch of Triton kernel " + std::string(variant.name);
  const bool extended = image.ctas != 1 || image.cooperative || image.dependent;
  (extended ? launch_extended : launch_plain)(function, image, grid, stream, arguments.pointers(), what);
}

}  // namespace cnnfast::gpu
