# What is linked, and where it is found: libcrypto (SHA-256), the headers of nlohmann/json; SDKs where an option asks.
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)

# nlohmann/json, in this order: the folder that was named; the CMake package of a distribution; the PyPI package
# `nlohmann-json`, beside this one in a Python environment or in that of the `python3` on PATH.
find_package(nlohmann_json 3.11 CONFIG QUIET)
set(json_hints)
if(nlohmann_json_FOUND)
  get_target_property(json_hints nlohmann_json::nlohmann_json INTERFACE_INCLUDE_DIRECTORIES)
endif()
list(APPEND json_hints "${CMAKE_CURRENT_LIST_DIR}/../../../../../nlohmann_json/include")
find_program(DIFFUSEVAE_PYTHON NAMES python3 python DOC "Asked where the PyPI package nlohmann-json is")
mark_as_advanced(DIFFUSEVAE_PYTHON)
if(DIFFUSEVAE_PYTHON)
  execute_process(
    COMMAND "${DIFFUSEVAE_PYTHON}" -c
      "from importlib.util import find_spec; print(find_spec('nlohmann_json').submodule_search_locations[0])"
    OUTPUT_VARIABLE json_package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(json_package)
    list(APPEND json_hints "${json_package}/include")
  endif()
endif()
if(DIFFUSEVAE_JSON_INCLUDE_DIR)
  set(json_hints "${DIFFUSEVAE_JSON_INCLUDE_DIR}")
endif()
unset(DIFFUSEVAE_JSON_INCLUDE_DIR_FOUND CACHE)  # looked for anew each time: an environment may have come or gone
find_path(DIFFUSEVAE_JSON_INCLUDE_DIR_FOUND nlohmann/json.hpp PATHS ${json_hints} NO_DEFAULT_PATH)
mark_as_advanced(DIFFUSEVAE_JSON_INCLUDE_DIR_FOUND)
if(NOT DIFFUSEVAE_JSON_INCLUDE_DIR_FOUND)
  message(FATAL_ERROR
    "nlohmann/json: found no nlohmann/json.hpp in `${json_hints}`, expected version 3.11 or newer; install it "
    "(`apt install nlohmann-json3-dev` or `pip install nlohmann-json`), or name its folder with "
    "-DDIFFUSEVAE_JSON_INCLUDE_DIR=PATH.")
endif()

set(DIFFUSEVAE_SDK_LIBRARIES)
if(DIFFUSEVAE_OPENVINO)
  find_package(OpenVINO REQUIRED COMPONENTS Runtime)
  list(APPEND DIFFUSEVAE_SDK_LIBRARIES openvino::runtime)
endif()
if(DIFFUSEVAE_TENSORRT)
  include("${CMAKE_CURRENT_LIST_DIR}/tensorrt.cmake")
  list(APPEND DIFFUSEVAE_SDK_LIBRARIES diffusevae_tensorrt)
endif()
