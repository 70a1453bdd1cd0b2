# The target diffusevae::diffusevae for find_package(diffusevae): beside installed targets: from them. In the Python
# package, which carries sources only: compiled in the build folder of whoever asks, and only if something links it.
if(EXISTS "${CMAKE_CURRENT_LIST_DIR}/diffusevaeTargets.cmake")
  include("${CMAKE_CURRENT_LIST_DIR}/diffusevaeTargets.cmake")
elseif(NOT TARGET diffusevae::diffusevae)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_BINARY_DIR}/diffusevae" EXCLUDE_FROM_ALL)
endif()
