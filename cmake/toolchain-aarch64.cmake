# Linux on 64-bit ARM, by Debian's cross compiler. COIL_SYSROOT (a cache variable, or the environment at the first
# configure) names a directory with the target's libraries: then everything is built. Without one there is no liburing to
# link with, and only what needs no ring is built.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_ASM_COMPILER aarch64-linux-gnu-gcc)
find_program(COIL_CROSS_CXX aarch64-linux-gnu-g++)
if(COIL_CROSS_CXX)
    set(CMAKE_CXX_COMPILER "${COIL_CROSS_CXX}")
endif()

set(COIL_SYSROOT "$ENV{COIL_SYSROOT}" CACHE PATH "Libraries and headers of the target")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES COIL_SYSROOT)
set(target_root /usr/aarch64-linux-gnu)
if(COIL_SYSROOT)
    if(NOT EXISTS "${COIL_SYSROOT}/usr/include")
        message(FATAL_ERROR "COIL_SYSROOT: there is no usr/include in ${COIL_SYSROOT}")
    endif()
    set(target_root "${COIL_SYSROOT}")
    set(CMAKE_SYSROOT "${COIL_SYSROOT}")
    set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
    set(ENV{PKG_CONFIG_SYSROOT_DIR} "${COIL_SYSROOT}")
    set(ENV{PKG_CONFIG_LIBDIR} "${COIL_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${COIL_SYSROOT}/usr/share/pkgconfig")
endif()

set(CMAKE_FIND_ROOT_PATH "${target_root}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# A sysroot of C libraries has no libstdc++.so to load.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static-libstdc++)
# With pauth-impdef the emulator signs addresses by a cheap hash: the real one takes most of the time.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -cpu max,pauth-impdef=on -L "${target_root}")
