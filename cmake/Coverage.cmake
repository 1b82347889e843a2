# Which lines and branches run: of csrc/, and of what llama.cpp does with texts, grammars and schemas. For GCC and
# `make fuzz-coverage`.

set(otter_counted -O1 --coverage -fprofile-abs-path -fprofile-update=atomic)
foreach(part _native otter_bridge otter_common otter_json_schema)
  target_compile_options(${part} PRIVATE ${otter_counted})
endforeach()
foreach(name llama-vocab llama-grammar unicode)
  set_source_files_properties("${OTTER_LLAMA_CPP_SOURCE}/src/${name}.cpp" TARGET_DIRECTORY llama
    PROPERTIES COMPILE_OPTIONS "${otter_counted}")
endforeach()
target_link_options(_native PRIVATE --coverage)
