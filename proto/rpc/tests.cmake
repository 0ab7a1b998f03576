# Every tests/unit/rpc/*_test.c links the runtime.
file(GLOB rpc_tests CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/unit/rpc/*_test.c")
foreach(test ${rpc_tests})
  get_filename_component(noun "${test}" NAME)
  string(REGEX REPLACE "_test\\.c$" "" noun "${noun}")
  covey_unit_test(rpc/${noun} covey_rpc)
endforeach()
