# Where llama.cpp comes from. A version bump changes the six values below and csrc/bridge.
#
# Sets OTTER_LLAMA_CPP_SOURCE (the tree), OTTER_LLAMA_CPP_COMMIT, OTTER_LLAMA_CPP_SDIST.

set(OTTER_LLAMA_CPP_SDIST "0.3.36")     # of llama-cpp-python
set(OTTER_LLAMA_CPP_SHA256 "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
# Of the files that the build needs, as cmake/fetch_llama_cpp.py prints it: a tree in the cache is compared with it.
set(OTTER_LLAMA_CPP_TREE_SHA256 "68976704d76cdd42d8fe596d8ee8af9fbbb3aa69aa8421c7af100a09e5c699bb")
set(OTTER_LLAMA_CPP_COMMIT "0c1e57098") # of llama.cpp
set(OTTER_LLAMA_CPP_VERSION "0.5.0")
set(OTTER_GGML_VERSION "0.25.3")

# out <- the version that a CMakeLists.txt of llama.cpp or ggml states, or "unknown".
function(otter_read_version out file prefix)
  set(version "")
  file(STRINGS "${file}" lines REGEX "^set\\(${prefix}_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+\\)")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^.* ([0-9]+)\\)$" "\\1" number "${line}")
    list(APPEND version "${number}")
  endforeach()
  list(LENGTH version length)
  if(length EQUAL 3)
    list(JOIN version "." version)
  else()
    set(version "unknown")
  endif()
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

if(OTTER_LLAMA_CPP_DIR)
  get_filename_component(OTTER_LLAMA_CPP_SOURCE "${OTTER_LLAMA_CPP_DIR}" ABSOLUTE)
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/cmake/fetch_llama_cpp.py"
            "${OTTER_LLAMA_CPP_SDIST}" "${OTTER_LLAMA_CPP_SHA256}" "${OTTER_LLAMA_CPP_TREE_SHA256}"
    OUTPUT_VARIABLE OTTER_LLAMA_CPP_SOURCE OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_VARIABLE otter_error ERROR_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE otter_result)
  if(NOT otter_result EQUAL 0)
    message(FATAL_ERROR "otter-gguf: ${otter_error}")
  endif()
endif()

foreach(file CMakeLists.txt LICENSE include/llama.h src/llama-model.h ggml/CMakeLists.txt
             common/json-schema-to-grammar.cpp convert_hf_to_gguf.py conversion/base.py gguf-py/gguf/__init__.py)
  if(NOT EXISTS "${OTTER_LLAMA_CPP_SOURCE}/${file}")
    message(FATAL_ERROR
      "otter-gguf: ${OTTER_LLAMA_CPP_SOURCE} is no llama.cpp tree, ${file} is missing; "
      "point OTTER_LLAMA_CPP_DIR at an unpacked llama.cpp, or delete the folder and build again if it is the cache's")
  endif()
endforeach()

otter_read_version(otter_llama_version "${OTTER_LLAMA_CPP_SOURCE}/CMakeLists.txt" LLAMA)
otter_read_version(otter_ggml_version "${OTTER_LLAMA_CPP_SOURCE}/ggml/CMakeLists.txt" GGML)
if(NOT "${otter_llama_version}/${otter_ggml_version}" STREQUAL "${OTTER_LLAMA_CPP_VERSION}/${OTTER_GGML_VERSION}")
  set(OTTER_LLAMA_CPP_COMMIT "unknown")
  message(WARNING
    "otter-gguf: ${OTTER_LLAMA_CPP_SOURCE} is llama.cpp ${otter_llama_version} with ggml ${otter_ggml_version}; "
    "this version is written for ${OTTER_LLAMA_CPP_VERSION} with ggml ${OTTER_GGML_VERSION} and may not compile")
endif()
message(STATUS "otter-gguf: llama.cpp ${otter_llama_version} (${OTTER_LLAMA_CPP_COMMIT}) in ${OTTER_LLAMA_CPP_SOURCE}")
