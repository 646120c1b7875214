// A warning, once per text and process.
#pragma once
#include <string>

namespace cnnfast::gpu {

void warn(const std::string& text);

}  // namespace cnnfast::gpu
