# Defines cuda_backend: the kernels of csrc/cuda, or what says that there are none.
#
# ON builds a wheel's code, for every architecture of FD_CUDA_WHEEL. AUTO builds for the GPU of this
# machine, and nothing for CUDA where there is none: six architectures take minutes.

# Compute capabilities of a wheel: code for each, and PTX of the last line for what comes after. One line
# is compiled once to PTX, as the kernels are the same within it, and then for each of its GPUs.
set(FD_CUDA_WHEEL
  "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89]"
  "-gencode=arch=compute_90,code=sm_90"
  "-gencode=arch=compute_100,code=[sm_100,sm_120,compute_100]")
set(architectures "80 86 89 90 100 120 and PTX")

add_library(cuda_backend INTERFACE)
include(CheckLanguage)
set(build_cuda ${FD_CUDA})
if(FD_CUDA STREQUAL AUTO)
  file(GLOB gpus /dev/nvidia[0-9]* /dev/dxg)
  check_language(CUDA)
  if(gpus AND CMAKE_CUDA_COMPILER)
    set(build_cuda ON)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES native)
    endif()
  else()
    set(build_cuda OFF)
    message(STATUS "CUDA backend: not built, as nvcc or a GPU is missing; FD_CUDA=ON builds it")
  endif()
elseif(FD_CUDA)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "FD_CUDA=ON needs nvcc: put it on the PATH or set CUDACXX; "
                        "FD_CUDA=OFF builds for the CPU alone")
  endif()
endif()

if(NOT build_cuda)
  target_sources(cuda_backend INTERFACE ${PROJECT_SOURCE_DIR}/csrc/cuda/absent.cpp)
  return()
endif()

if(CMAKE_CUDA_ARCHITECTURES)
  string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
else()
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  set(wheel_options ${FD_CUDA_WHEEL})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# One file for each divergence of the list.
file(READ csrc/divergence.h text)
string(REGEX MATCHALL "\n  X\\([A-Za-z]+\\)" listed "${text}")
set(kernel_files)
foreach(entry IN LISTS listed)
  string(REGEX REPLACE ".*X\\((.*)\\)" "\\1" divergence ${entry})
  configure_file(csrc/cuda/divergence.cu.in cuda/${divergence}.cu @ONLY)
  list(APPEND kernel_files ${PROJECT_BINARY_DIR}/cuda/${divergence}.cu)
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/divergence.h)

add_library(cuda_kernels OBJECT csrc/cuda/backend.cu ${kernel_files})
set_target_properties(cuda_kernels PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
  CUDA_SEPARABLE_COMPILATION OFF)
target_compile_options(cuda_kernels PRIVATE ${wheel_options} -Xfatbin=-compress-all)
target_compile_definitions(cuda_kernels PRIVATE FD_CUDA_ARCHITECTURES="${architectures}")
target_link_libraries(cuda_backend INTERFACE $<TARGET_OBJECTS:cuda_kernels> CUDA::cudart_static)
