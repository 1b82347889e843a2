# fuzz_validator: csrc/gguf alone under libFuzzer, with AddressSanitizer, UndefinedBehaviorSanitizer and a count of the
# lines that ran. Built by `make fuzz-validator`.

if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "otter-gguf: OTTER_FUZZ needs clang, for its libFuzzer: -DCMAKE_CXX_COMPILER=clang++")
endif()

file(GLOB otter_validator_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/gguf/*.cpp")
list(FILTER otter_validator_sources EXCLUDE REGEX "/quantize\\.cpp$") # of values, not of files
add_executable(fuzz_validator EXCLUDE_FROM_ALL
  "${PROJECT_SOURCE_DIR}/csrc/fuzz/fuzz_validator.cpp" ${otter_validator_sources})
set(otter_fuzz_options -fsanitize=fuzzer,address,undefined -fprofile-instr-generate)
target_compile_options(fuzz_validator PRIVATE
  -O1 -g -fno-sanitize-recover=all -fcoverage-mapping ${otter_fuzz_options})
target_compile_definitions(fuzz_validator PRIVATE _GLIBCXX_ASSERTIONS)
target_link_options(fuzz_validator PRIVATE ${otter_fuzz_options})
target_link_libraries(fuzz_validator PRIVATE otter_options ggml-base)
