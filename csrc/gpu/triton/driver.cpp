#include "gpu/triton/driver.h"

#include <dlfcn.h>

#include <cstdlib>

namespace cnnfast::gpu {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

std::string words(const Driver& driver, int error) {
  const char *name = nullptr, *text = nullptr;
  driver.cuGetErrorName(error, &name);
  driver.cuGetErrorString(error, &text);
  return (name ? name : "error " + std::to_string(error)) + std::string(text ? ": " : "") +
         (text ? text : "");
}

// The first missing function's name, or nullptr.
const char* load_functions(void* library, Driver& driver) {
#define CNNFAST_LOAD(name)                                                      \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, #name)); \
  if (!driver.name) return #name;
  CNNFAST_LOAD(cuInit)
  CNNFAST_LOAD(cuGetErrorName)
  CNNFAST_LOAD(cuGetErrorString)
  CNNFAST_LOAD(cuDeviceGet)
  CNNFAST_LOAD(cuDeviceGetName)
  CNNFAST_LOAD(cuDeviceGetAttribute)
  CNNFAST_LOAD(cuDevicePrimaryCtxRetain)
  CNNFAST_LOAD(cuCtxGetCurrent)
  CNNFAST_LOAD(cuCtxSetCurrent)
  CNNFAST_LOAD(cuModuleLoadDataEx)
  CNNFAST_LOAD(cuModuleGetFunction)
  CNNFAST_LOAD(cuFuncSetAttribute)
  CNNFAST_LOAD(cuLaunchKernel)
  CNNFAST_LOAD(cuStreamIsCapturing)
  CNNFAST_LOAD(cuThreadExchangeStreamCaptureMode)
#undef CNNFAST_LOAD
  driver.cuLaunchKernelEx =
      reinterpret_cast<decltype(driver.cuLaunchKernelEx)>(dlsym(library, "cuLaunchKernelEx"));
  return nullptr;
}

FoundDriver search() {
  static Driver driver;
  const char* forced = std::getenv("CNNFAST_CUDA_DRIVER");
  const std::string name = forced && *forced ? forced : kLibrary;
  // Never closed: functions and modules live as long as the process.
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    return {nullptr, "the CUDA driver library does not load (" + std::string(reason ? reason : name) + ")"};
  }
  if (const char* missing = load_functions(library, driver))
    return {nullptr, "the CUDA driver library " + name + " has no " + missing + ": it is too old or is none"};
  if (const int error = driver.cuInit(0))
    return {nullptr, "the CUDA driver does not start (cuInit: " + words(driver, error) + ")"};
  return {&driver, ""};
}

}  // namespace

const FoundDriver& find_driver() {
  static const FoundDriver found = search();
  return found;
}

const Driver& driver() {
  const FoundDriver& found = find_driver();
  if (!found.driver) throw DriverError(found.reason);
  return *found.driver;
}

void check(int result, const std::string& what) {
  if (result != 0) throw DriverError(what + " failed with " + words(driver(), result));
}

}  // namespace cnnfast::gpu
