# The replicated and the local database. storage/schema/NNN_*.sql are its schema steps, in order, compiled in.
file(GLOB schema_files CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/schema/*.sql")
set(schema_c "${CMAKE_CURRENT_BINARY_DIR}/schema_sql.c")
add_custom_command(
  OUTPUT "${schema_c}"
  COMMAND Python3::Interpreter "${CMAKE_CURRENT_SOURCE_DIR}/tools/embed.py" "${schema_c}" ${schema_files}
  DEPENDS ${schema_files} "${CMAKE_CURRENT_SOURCE_DIR}/tools/embed.py"
  VERBATIM)
# What needs SQLite only; covey_storage adds Raft.
add_library(covey_storage_sql STATIC sql.c catalog.c capture.c rowlog.c schema.c digest.c local.c backup.c "${schema_c}")
target_link_libraries(covey_storage_sql PUBLIC covey_flags covey_core covey_proto_gen PkgConfig::SQLITE PkgConfig::OPENSSL)
add_library(covey_storage STATIC db.c executor.c apply.c reader.c snapshot.c seed.c)
target_link_libraries(covey_storage PUBLIC covey_storage_sql)
if(TARGET covey_storage_raft)
  target_link_libraries(covey_storage PUBLIC covey_storage_raft PkgConfig::UV)
endif()

covey_unit_test(storage/sql covey_storage_sql)
covey_unit_test(storage/local covey_storage_sql)
covey_unit_test(storage/backup covey_storage)
covey_unit_test(storage/rowlog covey_storage_sql)
covey_unit_test(storage/db covey_storage)
