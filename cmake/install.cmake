# What `cmake --install` lays down: headers, library, the program coil, a CMake package and a pkg-config file, all of which may be moved.
set(COIL_CMAKE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/coil")
set(COIL_PC_DIR "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(TARGETS coil EXPORT coil-targets
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET coil_tool)
    install(TARGETS coil_tool RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
install(DIRECTORY include/coil DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(FILES tools/coil_gdb.py DESTINATION "${CMAKE_INSTALL_DATADIR}/coil")
install(EXPORT coil-targets NAMESPACE coil:: DESTINATION "${COIL_CMAKE_DIR}")

configure_package_config_file(cmake/coil-config.cmake.in "${PROJECT_BINARY_DIR}/coil-config.cmake"
    INSTALL_DESTINATION "${COIL_CMAKE_DIR}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/coil-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/coil-config.cmake" "${PROJECT_BINARY_DIR}/coil-config-version.cmake"
    DESTINATION "${COIL_CMAKE_DIR}")

# Relative to where coil.pc itself lies, so that an install prefix given late still holds.
foreach(dir LIBDIR INCLUDEDIR)
    if(IS_ABSOLUTE "${CMAKE_INSTALL_${dir}}")
        set(COIL_PC_${dir} "${CMAKE_INSTALL_${dir}}")
    else()
        set(COIL_PC_${dir} "\${prefix}/${CMAKE_INSTALL_${dir}}")
    endif()
endforeach()
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    set(COIL_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
    file(RELATIVE_PATH COIL_PC_UP "/${COIL_PC_DIR}" "/")
    string(REGEX REPLACE "/$" "" COIL_PC_UP "${COIL_PC_UP}")
    set(COIL_PC_PREFIX "\${pcfiledir}/${COIL_PC_UP}")
endif()
configure_file(cmake/coil.pc.in "${PROJECT_BINARY_DIR}/coil.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/coil.pc" DESTINATION "${COIL_PC_DIR}")
