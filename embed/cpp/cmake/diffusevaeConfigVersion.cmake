# Whether the Python package's version serves a request. Until 1.0 a minor version may change the interface. (An installed
# library has a generated file of the same rule in place of this one.)
include("${CMAKE_CURRENT_LIST_DIR}/diffusevaeVersion.cmake")
set(PACKAGE_VERSION "${diffusevae_VERSION_FOUND}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" diffusevae_minor "${PACKAGE_VERSION}")
set(PACKAGE_VERSION_COMPATIBLE FALSE)
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
if(NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION
   AND diffusevae_minor VERSION_EQUAL "${PACKAGE_FIND_VERSION_MAJOR}.${PACKAGE_FIND_VERSION_MINOR}")
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
