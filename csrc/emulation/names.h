// What kernels are called in their sources, template arguments included.
#pragma once

#include <set>
#include <string>

namespace fastmeta::emulation {

// Looked up in the module's symbols, which the kernels are among.
std::string kernel_name(const void* kernel);

// All names ever looked up.
const std::set<std::string>& kernels_run();

}  // namespace fastmeta::emulation
