# Defines the target cnnfast::cnnfast: the operator library, with torch's headers and libraries.
#
#   find_package(cnnfast CONFIG REQUIRED)                 # -DCMAKE_PREFIX_PATH=$(python -m cnnfast cmake-path)
#   target_link_libraries(program PRIVATE cnnfast::cnnfast)
#
# find_package(Torch) is not used: with a CUDA wheel it fails where no CUDA toolkit is installed. Torch is
#   1. CNNFAST_TORCH_DIR, the folder "torch" of a Python installation or an unpacked libtorch, else
#   2. the torch that lies beside this package, else
#   3. the torch that CNNFAST_PYTHON (default: the python3 of the active environment) imports.
# It must be the version that the operator library was built for.

cmake_minimum_required(VERSION 3.19)

get_filename_component(_cnnfast_package "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(_cnnfast_library "${_cnnfast_package}/lib/libcnnfast.so")
if(NOT EXISTS "${_cnnfast_library}")
  set(cnnfast_FOUND FALSE)
  set(cnnfast_NOT_FOUND_MESSAGE
      "${_cnnfast_library} does not exist: build it with `pip install --no-build-isolation -e .`")
  return()
endif()

# Where torch is
if(CNNFAST_TORCH_DIR)
  get_filename_component(_cnnfast_torch "${CNNFAST_TORCH_DIR}" ABSOLUTE)
elseif(EXISTS "${_cnnfast_package}/../torch/lib/libtorch_cpu.so")
  get_filename_component(_cnnfast_torch "${_cnnfast_package}/../torch" ABSOLUTE)
else()
  if(NOT CNNFAST_PYTHON)
    set(Python3_FIND_VIRTUALENV FIRST)
    find_package(Python3 COMPONENTS Interpreter QUIET)
    set(CNNFAST_PYTHON "${Python3_EXECUTABLE}")
  endif()
  execute_process(
    COMMAND "${CNNFAST_PYTHON}" -c "import os, torch; print(os.path.dirname(torch.__file__))"
    OUTPUT_VARIABLE _cnnfast_torch OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE _cnnfast_status ERROR_VARIABLE _cnnfast_error)
  if(NOT _cnnfast_status EQUAL 0)
    set(cnnfast_FOUND FALSE)
    set(cnnfast_NOT_FOUND_MESSAGE
        "`${CNNFAST_PYTHON}` cannot import torch: set CNNFAST_PYTHON or CNNFAST_TORCH_DIR\n${_cnnfast_error}")
    return()
  endif()
endif()
foreach(_cnnfast_name c10 torch_cpu torch)
  if(NOT EXISTS "${_cnnfast_torch}/lib/lib${_cnnfast_name}.so")
    set(cnnfast_FOUND FALSE)
    set(cnnfast_NOT_FOUND_MESSAGE "${_cnnfast_torch} has no lib/lib${_cnnfast_name}.so: set CNNFAST_TORCH_DIR")
    return()
  endif()
endforeach()

# Which torch it is: wheels carry version.py, libtorch a file named build-version
file(READ "${_cnnfast_package}/_build_info.json" _cnnfast_build_info)
string(JSON _cnnfast_wanted GET "${_cnnfast_build_info}" torch)
set(_cnnfast_found_version "")
if(EXISTS "${_cnnfast_torch}/version.py")
  file(STRINGS "${_cnnfast_torch}/version.py" _cnnfast_line REGEX "^__version__ *=")
  string(REGEX REPLACE ".*['\"]([^'\"]+)['\"].*" "\\1" _cnnfast_found_version "${_cnnfast_line}")
elseif(EXISTS "${_cnnfast_torch}/build-version")
  file(STRINGS "${_cnnfast_torch}/build-version" _cnnfast_found_version LIMIT_COUNT 1)
endif()
if(NOT _cnnfast_found_version STREQUAL _cnnfast_wanted)
  set(cnnfast_FOUND FALSE)
  set(cnnfast_NOT_FOUND_MESSAGE
      "libcnnfast.so was built for torch ${_cnnfast_wanted}, ${_cnnfast_torch} is torch ${_cnnfast_found_version}")
  return()
endif()

if(NOT TARGET cnnfast::cnnfast)
  add_library(cnnfast::torch INTERFACE IMPORTED)
  set_target_properties(cnnfast::torch PROPERTIES
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_COMPILE_DEFINITIONS _GLIBCXX_USE_CXX11_ABI=1 # torch's wheels since 2.6
    INTERFACE_INCLUDE_DIRECTORIES
      "${_cnnfast_torch}/include;${_cnnfast_torch}/include/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES "${_cnnfast_torch}/lib/libtorch_cpu.so;${_cnnfast_torch}/lib/libc10.so")

  # No symbol of the operator library is named by a program: its registrations run when it is loaded, so it must
  # stay in the list of needed libraries. It names the CUDA part of torch itself where it was built with it.
  add_library(cnnfast::cnnfast INTERFACE IMPORTED)
  set_target_properties(cnnfast::cnnfast PROPERTIES
    INTERFACE_LINK_LIBRARIES
      "-Wl,--push-state,--no-as-needed;${_cnnfast_library};-Wl,--pop-state;cnnfast::torch"
    INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined") # the CUDA libraries that a CUDA wheel names
endif()
set(cnnfast_FOUND TRUE)
