#include "cpu/amx_permission.h"

#include <cerrno>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cnnfast::cpu {
namespace {

#if defined(__x86_64__) && defined(__linux__)

// CPUID 7: AMX-BF16 is bit 22 and AMX-TILE bit 24 of edx.
bool cpu_has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
}

// XCR0: the operating system saves the tiles' configuration (bit 17) and data (bit 18).
bool system_saves_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}

std::string ask() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (!cpu_has_tiles()) return kNoAmx;
  if (!system_saves_tiles()) return "the operating system does not save AMX tiles (XCR0)";
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return {};
  return "Linux refused the AMX tiles (arch_prctl: " + std::string(std::strerror(errno)) +
         "; alternate signal stacks may be too small for them)";
}

#else

std::string ask() { return kNoAmx; }

#endif

}  // namespace

const std::string& amx_refusal() {
  static const std::string refusal = ask();
  return refusal;
}

}  // namespace cnnfast::cpu
