# llama.cpp's own Hugging Face converter goes along with the package: a base model is converted by the very code that
# belongs to the engine. The folders keep llama.cpp's layout, by which the script finds its parts.

set(otter_converter otter_gguf/converters/llama_cpp)

install(FILES
  "${OTTER_LLAMA_CPP_SOURCE}/convert_hf_to_gguf.py"
  "${OTTER_LLAMA_CPP_SOURCE}/LICENSE"
  DESTINATION ${otter_converter} COMPONENT converter)
install(DIRECTORY "${OTTER_LLAMA_CPP_SOURCE}/conversion"
  DESTINATION ${otter_converter} COMPONENT converter FILES_MATCHING PATTERN "*.py" PATTERN __pycache__ EXCLUDE)
install(DIRECTORY "${OTTER_LLAMA_CPP_SOURCE}/gguf-py/gguf"
  DESTINATION ${otter_converter}/gguf-py COMPONENT converter
  FILES_MATCHING PATTERN "*.py" PATTERN scripts EXCLUDE PATTERN __pycache__ EXCLUDE)
install(FILES "${OTTER_LLAMA_CPP_SOURCE}/gguf-py/LICENSE"
  DESTINATION ${otter_converter}/gguf-py COMPONENT converter)
install(DIRECTORY "${OTTER_LLAMA_CPP_SOURCE}/models/templates" # chat templates that some conversions add
  DESTINATION ${otter_converter}/models COMPONENT converter)

# The licence of what is linked into the module, where installers look for licences.
if(DEFINED SKBUILD_METADATA_DIR)
  install(FILES "${OTTER_LLAMA_CPP_SOURCE}/LICENSE"
    DESTINATION "${SKBUILD_METADATA_DIR}/licenses/llama.cpp" COMPONENT native)
endif()
