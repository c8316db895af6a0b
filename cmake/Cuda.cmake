# Sets cuda_objects (empty without CUDA) and cuda_names (architectures, comma-separated).
set(cuda_objects)
if(FASTMETA_CUDA STREQUAL "off" OR NOT FASTMETA_CUDA_ARCHITECTURES)
  return()
endif()

# Without a working compiler: an error if CUDA was asked for, else a build for the CPU alone.
function(cuda_unavailable problem)
  string(CONCAT text "${problem} Install the CUDA toolkit (nvcc, cudart headers and libcudart_static) and "
                     "put nvcc on PATH or set CUDACXX, or build for the CPU alone with FASTMETA_CUDA=off.")
  if(FASTMETA_CUDA STREQUAL "on")
    message(FATAL_ERROR "${text}")
  endif()
  message(STATUS "fastmeta: CUDA kernels: none. ${text}")
  set(FASTMETA_CUDA_REASON "${problem}" PARENT_SCOPE)
endfunction()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  cuda_unavailable("nvcc does not compile.")
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit QUIET)
if(NOT TARGET CUDA::cudart_static)
  cuda_unavailable("nvcc was found, but not the static CUDA runtime.")
  return()
endif()

# Machine code for each, and PTX of the last for GPUs to come.
list(GET FASTMETA_CUDA_ARCHITECTURES -1 newest)
list(TRANSFORM FASTMETA_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE targets)
list(APPEND targets "${newest}-virtual")

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(fastmeta_cuda OBJECT ${cuda_sources})
target_include_directories(fastmeta_cuda PRIVATE csrc csrc/include)
set_target_properties(fastmeta_cuda PROPERTIES CUDA_ARCHITECTURES "${targets}" CUDA_STANDARD 17)
set(cuda_objects $<TARGET_OBJECTS:fastmeta_cuda>)
list(JOIN FASTMETA_CUDA_ARCHITECTURES "," cuda_names)
message(STATUS "fastmeta: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${cuda_names}, PTX ${newest}")
