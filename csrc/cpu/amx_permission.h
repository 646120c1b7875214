// Whether this process may use AMX tiles.
#pragma once
#include <string>

namespace cnnfast::cpu {

inline const std::string kNoAmx = "this CPU has no AMX tiles for bfloat16";

// Empty, or why not. Linux gives the tiles' state to processes that ask for it: this asks, once.
const std::string& amx_refusal();

}  // namespace cnnfast::cpu
