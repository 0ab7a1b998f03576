# covey_storage_raft: the Raft participant; included by storage/CMakeLists.txt.
add_library(covey_storage_raft STATIC
  ${CMAKE_CURRENT_LIST_DIR}/raft_install.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_node.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_node_change.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_node_confirm.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_offline.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_shim.c
  ${CMAKE_CURRENT_LIST_DIR}/raft_wire.c)
target_link_libraries(covey_storage_raft PUBLIC covey_core covey_proto_gen PkgConfig::RAFT PkgConfig::UV PkgConfig::OPENSSL)

# The transport needs the RPC runtime; everything above works without it (and is tested so).
if(TARGET covey_rpc AND EXISTS ${CMAKE_CURRENT_LIST_DIR}/raft_transport.c)
  add_library(covey_storage_raft_transport STATIC ${CMAKE_CURRENT_LIST_DIR}/raft_transport.c)
  target_link_libraries(covey_storage_raft_transport PUBLIC covey_storage_raft covey_rpc)
  covey_unit_test(storage/raft_transport covey_storage_raft_transport)
endif()

foreach(noun node shim wire cluster)
  if(EXISTS ${PROJECT_SOURCE_DIR}/tests/unit/storage/raft_${noun}_test.c)
    covey_unit_test(storage/raft_${noun} covey_storage_raft)
  endif()
endforeach()
if(EXISTS ${PROJECT_SOURCE_DIR}/tests/sim/CMakeLists.txt)
  add_subdirectory(${PROJECT_SOURCE_DIR}/tests/sim ${CMAKE_CURRENT_BINARY_DIR}/sim)
endif()
