# liburing as the target PkgConfig::liburing. A cross build without a liburing of its own borrows the build machine's
# headers, which fit every machine: then the library compiles, and programs that need no ring link.
find_package(PkgConfig REQUIRED)
set(COIL_RINGLESS OFF)
if(CMAKE_CROSSCOMPILING AND NOT DEFINED ENV{PKG_CONFIG_LIBDIR})
    find_path(COIL_HOST_LIBURING liburing.h PATHS /usr/include /usr/local/include
        NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH REQUIRED)
    set(borrowed "${PROJECT_BINARY_DIR}/liburing")
    file(MAKE_DIRECTORY "${borrowed}")
    file(CREATE_LINK "${COIL_HOST_LIBURING}/liburing.h" "${borrowed}/liburing.h" SYMBOLIC)
    file(CREATE_LINK "${COIL_HOST_LIBURING}/liburing" "${borrowed}/liburing" SYMBOLIC)
    add_library(PkgConfig::liburing INTERFACE IMPORTED GLOBAL)
    set_target_properties(PkgConfig::liburing PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${borrowed}")
    set(COIL_RINGLESS ON)
else()
    pkg_check_modules(liburing REQUIRED IMPORTED_TARGET GLOBAL liburing>=2.3)
endif()
