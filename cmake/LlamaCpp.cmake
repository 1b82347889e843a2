# llama.cpp and ggml as static libraries with hidden symbols, so that the module can live in a process beside
# llama-cpp-python. Whatever is not fixed here (GGML_NATIVE, GGML_CUDA, GGML_METAL, ...) stays the user's choice.

# A plain variable wins over llama.cpp's option() of the same name (policy CMP0077) and leaves no cache entry behind.
set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
set(CMAKE_POLICY_DEFAULT_CMP0063 NEW)
foreach(language C CXX CUDA OBJC)
  set(CMAKE_${language}_VISIBILITY_PRESET hidden)
endforeach()
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

set(BUILD_SHARED_LIBS OFF)
set(GGML_BACKEND_DL OFF)
set(GGML_OPENMP OFF)               # clashes with torch's OpenMP runtime; ggml's own thread pool is as fast
set(GGML_METAL_EMBED_LIBRARY ON)   # a wheel has no place for a .metallib
set(LLAMA_ALL_WARNINGS OFF)        # not our sources
foreach(part COMMON TESTS TOOLS EXAMPLES SERVER APP UI MTMD)
  set(LLAMA_BUILD_${part} OFF)
endforeach()
set(LLAMA_OPENSSL OFF)

# Without these, llama.cpp asks git and finds the commit of whatever repository lies around its folder.
set(LLAMA_BUILD_COMMIT "${OTTER_LLAMA_CPP_COMMIT}")
set(LLAMA_BUILD_NUMBER 0)

# A module built here runs here: it finds the CUDA libraries where the linker did.
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
if(GGML_CUDA)
  include("${PROJECT_SOURCE_DIR}/cmake/Cuda.cmake")
endif()

# EXCLUDE_FROM_ALL: only what the module links is compiled, and none of llama.cpp's install rules reach the wheel.
add_subdirectory("${OTTER_LLAMA_CPP_SOURCE}" llama.cpp EXCLUDE_FROM_ALL)

# GCC 12's _tile_loadconfig reads 8 of the 64 bytes as far as the optimizer knows, which takes the rest for dead: tiles
# of no size, and SIGILL in the first product of a quantized matrix on a processor with AMX.
if(TARGET ggml-cpu AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set_source_files_properties("${OTTER_LLAMA_CPP_SOURCE}/ggml/src/ggml-cpu/amx/mmq.cpp" TARGET_DIRECTORY ggml-cpu
    PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")
endif()
