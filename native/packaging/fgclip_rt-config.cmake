# Targets: fgclip_rt::fgclip_rt, the shared library, and fgclip_rt::static. Paths are relative to this file, so the tree
# may be moved.
get_filename_component(_fgclip_rt_lib "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
get_filename_component(_fgclip_rt_include "${CMAKE_CURRENT_LIST_DIR}/@INCLUDE_FROM_CMAKE@" ABSOLUTE)

if(NOT TARGET fgclip_rt::fgclip_rt)
  add_library(fgclip_rt::fgclip_rt SHARED IMPORTED)
  set_target_properties(fgclip_rt::fgclip_rt PROPERTIES
    IMPORTED_LOCATION "${_fgclip_rt_lib}/libfgclip_rt.so.@ABI@"
    IMPORTED_SONAME "libfgclip_rt.so.@ABI@"
    INTERFACE_INCLUDE_DIRECTORIES "${_fgclip_rt_include}")

  add_library(fgclip_rt::static STATIC IMPORTED)
  set_target_properties(fgclip_rt::static PROPERTIES
    IMPORTED_LOCATION "${_fgclip_rt_lib}/libfgclip_rt.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_fgclip_rt_include}"
    INTERFACE_LINK_LIBRARIES "gcc_s;pthread;m;dl")
endif()

unset(_fgclip_rt_lib)
unset(_fgclip_rt_include)
