# TensorRT and the CUDA runtime: in TensorRT_ROOT and CUDAToolkit_ROOT, or where the system has them.
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS "${TensorRT_ROOT}" ENV TensorRT_ROOT PATH_SUFFIXES include)
find_library(TensorRT_LIBRARY nvinfer HINTS "${TensorRT_ROOT}" ENV TensorRT_ROOT PATH_SUFFIXES lib lib64)
set(cuda "${CUDAToolkit_ROOT}" ENV CUDAToolkit_ROOT ENV CUDA_PATH /usr/local/cuda)
find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ${cuda} PATH_SUFFIXES include)
find_library(CUDA_RUNTIME_LIBRARY cudart HINTS ${cuda} PATH_SUFFIXES lib64 lib)
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY CUDA_RUNTIME_INCLUDE_DIR CUDA_RUNTIME_LIBRARY)

foreach(found IN ITEMS TensorRT_INCLUDE_DIR TensorRT_LIBRARY CUDA_RUNTIME_INCLUDE_DIR CUDA_RUNTIME_LIBRARY)
  if(NOT ${found})
    message(FATAL_ERROR
      "DIFFUSEVAE_TENSORRT: found no ${found}, expected the TensorRT SDK (10.1 or newer: NvInfer.h, libnvinfer) and "
      "the CUDA runtime (cuda_runtime_api.h, libcudart); name their folders with -DTensorRT_ROOT=PATH "
      "-DCUDAToolkit_ROOT=PATH, or leave the option off.")
  endif()
endforeach()

add_library(diffusevae_tensorrt INTERFACE)
target_include_directories(diffusevae_tensorrt SYSTEM INTERFACE "${TensorRT_INCLUDE_DIR}" "${CUDA_RUNTIME_INCLUDE_DIR}")
target_link_libraries(diffusevae_tensorrt INTERFACE "${TensorRT_LIBRARY}" "${CUDA_RUNTIME_LIBRARY}")
