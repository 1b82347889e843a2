# What keeps a mistake in C or C++ from becoming an attacker's tool, for llama.cpp's sources as for ours, and no path of
# the machine that built the module inside it. Builds for finding mistakes (Debug, Sanitize, OTTER_FUZZ, OTTER_COVERAGE)
# do without: their own checks see more, and debuggers and coverage want the real paths.

if(OTTER_FUZZ OR OTTER_COVERAGE OR MSVC OR NOT CMAKE_BUILD_TYPE MATCHES "^(Release|MinSizeRel|RelWithDebInfo)$")
  return()
endif()
include(CheckCXXCompilerFlag)

function(otter_add_option_if_known flag)
  string(MAKE_C_IDENTIFIER "OTTER_HAS${flag}" known)
  check_cxx_compiler_flag("${flag}" ${known})
  if(${known})
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${flag}>")
  endif()
endfunction()

otter_add_option_if_known(-fstack-protector-strong)
otter_add_option_if_known(-fstack-clash-protection)
otter_add_option_if_known(-fcf-protection)

# Level 3 is GCC 12's and Clang 9's; libc warns where a compiler does not know it.
set(otter_fortify 2)
if((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12) OR
   (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 9))
  set(otter_fortify 3)
endif()
# Some distributions' compilers have a level of their own, which must go first.
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=${otter_fortify}>")

# GCC takes the last of the maps that fit: what lies in a folder of ours stands behind it.
foreach(map IN ITEMS "${PROJECT_SOURCE_DIR}=otter-gguf" "${PROJECT_BINARY_DIR}=build" "${OTTER_LLAMA_CPP_SOURCE}=llama.cpp")
  otter_add_option_if_known("-ffile-prefix-map=${map}")
endforeach()

if(UNIX AND NOT APPLE)
  add_link_options("LINKER:-z,relro,-z,now,-z,noexecstack")
endif()
