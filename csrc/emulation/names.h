// Kernel names as in the sources, including template arguments.
#pragma once

#include <set>
#include <string>

namespace fastmeta::emulation {

// The name of a kernel, from the symbol table of the module.
std::string kernel_name(const void* kernel);

// All names looked up so far.
const std::set<std::string>& kernels_run();

}  // namespace fastmeta::emulation
