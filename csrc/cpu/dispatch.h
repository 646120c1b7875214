// Which instruction sets were compiled, which of them this CPU runs, and the one in use.
#pragma once
#include <string>
#include <vector>

namespace cnnfast::cpu {

std::vector<std::string> compiled_isas();   // best first
std::vector<std::string> available_isas();  // compiled and runnable here, best first
std::string active_isa();
std::string amx_state();  // empty where AMX can be used, else why not

}  // namespace cnnfast::cpu
