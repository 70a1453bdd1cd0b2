# What `cmake --install` writes: library, headers, and the files by which find_package(diffusevae) finds them.
include(CMakePackageConfigHelpers)
set(package "${CMAKE_INSTALL_LIBDIR}/cmake/diffusevae")

install(TARGETS diffusevae EXPORT diffusevaeTargets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT diffusevaeTargets NAMESPACE diffusevae:: DESTINATION "${package}")
write_basic_package_version_file(
  "${CMAKE_CURRENT_BINARY_DIR}/diffusevaeConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(
  FILES cmake/diffusevaeConfig.cmake "${CMAKE_CURRENT_BINARY_DIR}/diffusevaeConfigVersion.cmake"
  DESTINATION "${package}")
