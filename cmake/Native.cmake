# The extension module otter_gguf._native from csrc/.

if(NOT pybind11_DIR)
  # scikit-build-core adds pybind11's folder by itself; a plain `cmake` run asks the interpreter.
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
    OUTPUT_VARIABLE otter_pybind11_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(pybind11 2.12 CONFIG REQUIRED HINTS "${otter_pybind11_dir}")

file(GLOB_RECURSE otter_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/*.cpp")
file(GLOB_RECURSE otter_bridge_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/bridge/*.cpp")
file(GLOB_RECURSE otter_json_schema_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/json_schema/*.cpp")
file(GLOB_RECURSE otter_fuzz_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/fuzz/*.cpp")
list(REMOVE_ITEM otter_sources ${otter_bridge_sources} ${otter_json_schema_sources} ${otter_fuzz_sources})

# What every source of ours is compiled with. llama.cpp's headers are system headers: their warnings are not ours.
add_library(otter_options INTERFACE)
target_include_directories(otter_options INTERFACE "${PROJECT_SOURCE_DIR}/csrc")
target_include_directories(otter_options SYSTEM INTERFACE
  "${OTTER_LLAMA_CPP_SOURCE}/include" "${OTTER_LLAMA_CPP_SOURCE}/ggml/include")
target_compile_definitions(otter_options INTERFACE
  OTTER_LLAMA_CPP_COMMIT="${OTTER_LLAMA_CPP_COMMIT}"
  OTTER_LLAMA_CPP_SDIST="${OTTER_LLAMA_CPP_SDIST}")
target_compile_options(otter_options INTERFACE
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall;-Wextra;-Wshadow>
  $<$<CXX_COMPILER_ID:MSVC>:/W4;/utf-8>)

pybind11_add_module(_native MODULE NO_EXTRAS ${otter_sources})
target_link_libraries(_native PRIVATE otter_options llama)

if(otter_bridge_sources)
  # A library of its own: llama.cpp's private headers can be included here and nowhere else.
  add_library(otter_bridge OBJECT ${otter_bridge_sources})
  target_include_directories(otter_bridge SYSTEM PRIVATE
    "${OTTER_LLAMA_CPP_SOURCE}/src" "${OTTER_LLAMA_CPP_SOURCE}/ggml/src")
  target_link_libraries(otter_bridge PRIVATE otter_options llama)
  target_sources(_native PRIVATE $<TARGET_OBJECTS:otter_bridge>)
endif()

# llama.cpp's converter of JSON schemas, alone: the rest of its folder `common` brings HTTP, a console and more. No
# option of ours holds for its sources.
set(otter_common "${OTTER_LLAMA_CPP_SOURCE}/common")
add_library(otter_common OBJECT
  "${otter_common}/json-schema-to-grammar.cpp" "${otter_common}/json-schema.cpp" "${otter_common}/json.cpp"
  "${otter_common}/trie.cpp" "${otter_common}/unicode.cpp")
target_include_directories(otter_common PRIVATE "${OTTER_LLAMA_CPP_SOURCE}/vendor")
target_link_libraries(otter_common PRIVATE llama)

add_library(otter_json_schema OBJECT ${otter_json_schema_sources})
target_include_directories(otter_json_schema SYSTEM PRIVATE "${otter_common}")
target_link_libraries(otter_json_schema PRIVATE otter_options llama)
target_sources(_native PRIVATE $<TARGET_OBJECTS:otter_common> $<TARGET_OBJECTS:otter_json_schema>)

# Python needs one symbol. Everything else stays local, also the templates of std that any object file instantiates.
if(APPLE)
  target_link_options(_native PRIVATE "LINKER:-exported_symbol,_PyInit__native")
elseif(UNIX)
  set(otter_exports "${PROJECT_SOURCE_DIR}/cmake/exports.map")
  target_link_options(_native PRIVATE "LINKER:--exclude-libs,ALL" "LINKER:--version-script=${otter_exports}")
  set_property(TARGET _native APPEND PROPERTY LINK_DEPENDS "${otter_exports}")
endif()

install(TARGETS _native LIBRARY DESTINATION otter_gguf COMPONENT native)
