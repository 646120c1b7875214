// The CUDA driver library, loaded at run time and never linked: a build with Triton kernels needs no CUDA
// toolkit, and runs on machines without a GPU. Types and numbers are those of the driver's binary interface.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace cnnfast::gpu {

struct CuModule;
struct CuFunction;
struct CuContext;
using CuStream = void*;

enum CuDeviceAttribute : int {
  kCapabilityMajor = 75,
  kCapabilityMinor = 76,
  kSharedBytesPerBlockOptin = 97,
  kProcessors = 16,
};
enum CuFunctionAttribute : int { kMaxDynamicSharedBytes = 8, kNonPortableClusterAllowed = 14 };
enum CuJitOption : int { kJitErrorLog = 5, kJitErrorLogBytes = 6 };
enum CuLaunchAttributeId : int {
  kLaunchCooperative = 2,
  kLaunchClusterDimension = 4,
  kLaunchClusterPolicy = 5,
  kLaunchProgrammaticSerialization = 6,
};
constexpr int kClusterPolicySpread = 1;
constexpr int kCaptureNone = 0;
constexpr int kCaptureModeRelaxed = 2;

struct CuLaunchAttribute {
  CuLaunchAttributeId id;
  char padding[8 - sizeof(CuLaunchAttributeId)];
  union {
    char bytes[64];
    int number;
    struct {
      unsigned x, y, z;
    } cluster;
  } value;
};
static_assert(sizeof(CuLaunchAttribute) == 72);

struct CuLaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  CuStream stream;
  CuLaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(CuLaunchConfig) == 56);

// Functions of the driver under their own names. Each returns 0 or an error's number.
struct Driver {
  int (*cuInit)(unsigned flags);
  int (*cuGetErrorName)(int error, const char** name);
  int (*cuGetErrorString)(int error, const char** text);
  int (*cuDeviceGet)(int* device, int ordinal);
  int (*cuDeviceGetName)(char* name, int bytes, int device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuDevicePrimaryCtxRetain)(CuContext** context, int device);
  int (*cuCtxGetCurrent)(CuContext** context);
  int (*cuCtxSetCurrent)(CuContext* context);
  int (*cuModuleLoadDataEx)(CuModule** module, const void* image, unsigned options, const int* names,
                            void** values);
  int (*cuModuleGetFunction)(CuFunction** function, CuModule* module, const char* name);
  int (*cuFuncSetAttribute)(CuFunction* function, int attribute, int value);
  int (*cuLaunchKernel)(CuFunction* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                        CuStream stream, void** parameters, void** extra);
  int (*cuStreamIsCapturing)(CuStream stream, int* status);
  int (*cuThreadExchangeStreamCaptureMode)(int* mode);
  // nullptr in drivers older than CUDA 11.8; only clusters and dependent launches need it.
  int (*cuLaunchKernelEx)(const CuLaunchConfig* config, CuFunction* function, void** parameters,
                          void** extra);
};

// A GPU call that failed, in words.
class DriverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct FoundDriver {
  const Driver* driver;  // nullptr: none
  std::string reason;    // why there is none
};

// libcuda.so.1, or the library that the environment variable CNNFAST_CUDA_DRIVER names. Looked for once.
const FoundDriver& find_driver();

// The driver; DriverError where there is none.
const Driver& driver();

// DriverError with the driver's own name and words for the error, unless result is 0.
void check(int result, const std::string& what);

}  // namespace cnnfast::gpu
