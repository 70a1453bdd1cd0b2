# The version that engine/__init__.py states, in a source tree as in an installed Python package.
cmake_path(SET diffusevae_engine NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../../../engine/__init__.py")
if(NOT EXISTS "${diffusevae_engine}")  # in the Python package: engine/_sources/embed/cpp/cmake
  cmake_path(SET diffusevae_engine NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../../../../__init__.py")
endif()
file(STRINGS "${diffusevae_engine}" diffusevae_line REGEX "^__version__ = \"[0-9]+\\.[0-9]+\\.[0-9]+")
if(NOT diffusevae_line MATCHES "\"([0-9]+\\.[0-9]+\\.[0-9]+)[^\"]*\"")
  message(FATAL_ERROR
    "${diffusevae_engine}: found no line `__version__ = \"MAJOR.MINOR.PATCH\"`, expected one; take embed/cpp together "
    "with the folders engine and kernels beside embed, as the repository and the Python package have them.")
endif()
set(diffusevae_VERSION_FOUND "${CMAKE_MATCH_1}")
