// What the build leaves of each Triton kernel: machine code per architecture and the meaning of its
// parameters. build_support/triton_aot writes the table; a build without it has an empty one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace cnnfast::gpu {

// What a kernel's parameter was compiled as.
enum class Role : uint8_t {
  kPassed,  // is passed at run time
  kNumber,  // was this number: the variant serves no other
  kWord,    // was this word
  kAbsent,  // was no tensor
  kFree,    // was this number, which says how the kernel works and not for what: fits all arguments
};
enum class Type : uint8_t {
  kNone,
  kInt32,
  kInt64,
  kFloat32,
  kFloat16,
  kBFloat16
};  // the last three: tensors of

struct Parameter {
  std::string_view name;
  Role role;
  Type type;
  int divisor;  // of a number, or of a tensor's address in bytes: what lets the code read 16 bytes at once
  int64_t number;
  std::string_view word;
};

struct Image {
  int arch;                         // 80 for sm_80
  bool arch_specific;               // sm_90a: runs on that very architecture
  bool ptx;                         // to be compiled by the driver, for any later architecture
  size_t offset, bytes, raw_bytes;  // in the blob, compressed by zlib; when unpacked
  int shared_bytes, warps, ctas;
  bool cooperative, dependent;                  // launch attributes
  size_t global_scratch, global_scratch_align;  // bytes per program
  size_t profile_scratch, profile_scratch_align;
};

struct Tile {
  int m, n, k;  // 0: of no meaning for the kernel
};

struct Variant {
  std::string_view name;    // unique; stands in caches of measured times
  std::string_view kernel;  // such as conv2d
  std::string_view entry;   // the function's name in the machine code
  Tile tile;
  const Parameter* parameters;
  size_t parameter_count;
  const Image* images;
  size_t image_count;
};

struct Table {
  const Variant* variants;
  size_t count;
  const unsigned char* blob;
  std::string_view triton;  // version that compiled it; empty without kernels
};

const Table& table();

}  // namespace cnnfast::gpu
