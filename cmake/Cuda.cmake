# -DGGML_CUDA=ON: what is missing is said before llama.cpp's files trip over it.

find_package(CUDAToolkit QUIET)
if(NOT CUDAToolkit_FOUND)
  message(FATAL_ERROR
    "otter-gguf: GGML_CUDA is on, but no CUDA toolkit was found; install it, or name it with -DCUDAToolkit_ROOT=DIR")
endif()
if(NOT TARGET CUDA::cublas)
  message(FATAL_ERROR
    "otter-gguf: the CUDA toolkit ${CUDAToolkit_VERSION} in ${CUDAToolkit_TARGET_DIR} has no cuBLAS; install its "
    "development package, or name the libraries with -DCUDA_cublas_LIBRARY=FILE -DCUDA_cublasLt_LIBRARY=FILE")
endif()
if(NOT TARGET CUDA::cuda_driver AND NOT GGML_CUDA_NO_VMM)
  message(FATAL_ERROR
    "otter-gguf: neither the driver's libcuda nor the toolkit's stub of it was found; install the toolkit's "
    "driver development package, or do without virtual memory management with -DGGML_CUDA_NO_VMM=ON")
endif()

# llama.cpp builds for the GPU at hand, and CMake stops where there is none, as in a container that only builds.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}") # llama.cpp would overrule it
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE otter_no_gpu OUTPUT_QUIET ERROR_QUIET)
  if(otter_no_gpu)
    set(CMAKE_CUDA_ARCHITECTURES all-major)
    message(STATUS
      "otter-gguf: no GPU found, building for all major architectures (slow); -DCMAKE_CUDA_ARCHITECTURES=90 builds one")
  endif()
endif()
