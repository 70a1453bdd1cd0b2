# The kernels that are compiled in: the sources and flags of kernels/build.py (a test compares the two), so that
# C++ and Python compute the same bits.
cmake_path(SET DIFFUSEVAE_KERNELS_DIR NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../../../kernels")

# No fast-math: results are the same bits everywhere. The two -fno- flags change no result and let loops vectorise.
set(DIFFUSEVAE_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math)
foreach(flags IN ITEMS "${CMAKE_CXX_FLAGS}" "${CMAKE_CXX_FLAGS_${CMAKE_BUILD_TYPE}}")
  if(flags MATCHES "-ffast-math|-Ofast|-funsafe-math|-fassociative-math|-freciprocal-math|-ffinite-math")
    message(FATAL_ERROR
      "CMAKE_CXX_FLAGS: found `${flags}`, expected no fast-math: images would no longer be those of the seed; "
      "leave that flag out, at least for this library.")
  endif()
endforeach()

# The library is for any x86-64; these files alone are compiled for more, and run only where the processor has it. Each for
# exactly its instructions, whatever CMAKE_CXX_FLAGS say.
set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma)
set(target_avx2 -mavx2 -mfma -mf16c -mno-avx512f)
set(target_avx512 ${avx512} -mno-avx512bf16)
set(target_avx512_bf16 ${avx512} -mavx512bf16)
set(target_amx ${avx512} -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8)

file(GLOB DIFFUSEVAE_KERNEL_SOURCES CONFIGURE_DEPENDS "${DIFFUSEVAE_KERNELS_DIR}/native/*.cpp")
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(FILTER DIFFUSEVAE_KERNEL_SOURCES EXCLUDE REGEX "/target_[a-z0-9_]+\\.cpp$")
endif()
foreach(source IN LISTS DIFFUSEVAE_KERNEL_SOURCES)
  cmake_path(GET source STEM stem)
  if(stem MATCHES "^target_")
    if(DIFFUSEVAE_SANITIZE)  # slow unoptimised, minutes to instrument; tests/unit/test_native_kernels.py runs them so
      list(APPEND ${stem} -O1 -fno-sanitize=all)
    endif()
    set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${${stem}}")
  endif()
endforeach()
list(PREPEND DIFFUSEVAE_KERNEL_SOURCES "${DIFFUSEVAE_KERNELS_DIR}/cpu/kernels.cpp")
