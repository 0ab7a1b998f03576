/* SQLite with less ceremony: a connection with a statement cache, binding by a type string. A connection belongs to one thread at a time.
 *
 *   struct sql_stmt *s = sql_query(sql, "SELECT id, name FROM nodes WHERE state = ?1", "i", (int64_t)0);
 *   while (sql_next(s)) use(sql_int(s, 0), sql_text(s, 1));
 *   if (sql_done(s, err) != STATUS_OK) return err->code;
 */
#ifndef COVEY_STORAGE_SQL_H
#define COVEY_STORAGE_SQL_H

#include "proto/core/core.h"
#include <sqlite3.h>

struct sql;
struct sql_stmt;

enum { SQL_READONLY = 1, SQL_CREATE = 2, SQL_SYNC_OFF = 4 };

int sql_open(const char *path, unsigned flags, struct sql **out, struct error *err); /* WAL, foreign keys on, busy timeout 5 s */
void sql_close(struct sql *sql);
sqlite3 *sql_handle(struct sql *sql);

/* Types: s text (NULL binds NULL), i int64_t, d double, b blob (const void *, size_t), n NULL (no argument), o = bool as int.
 * Never NULL: errors (a bad statement, too) are kept and reported by sql_done. */
struct sql_stmt *sql_query(struct sql *sql, const char *text, const char *types, ...);
bool sql_next(struct sql_stmt *stmt); /* false at the end or on error */
int64_t sql_int(struct sql_stmt *stmt, int column);
double sql_double(struct sql_stmt *stmt, int column);
const char *sql_text(struct sql_stmt *stmt, int column); /* "" for NULL; valid until the next sql_next/sql_done */
const void *sql_blob(struct sql_stmt *stmt, int column, size_t *len);
bool sql_null(struct sql_stmt *stmt, int column);
int sql_columns(struct sql_stmt *stmt);
int sql_done(struct sql_stmt *stmt, struct error *err); /* resets and gives the statement back */

/* Runs a statement that returns no rows. Constraint violations give STATUS_ALREADY_EXISTS (UNIQUE, PRIMARY KEY) or STATUS_FAILED_PRECONDITION (also
 * for what a db_write may not do: transactions, schema changes, …), others STATUS_INTERNAL, with SQLite's text. */
int sql_exec(struct sql *sql, struct error *err, const char *text, const char *types, ...);
/* First column of the first row as integer / malloc'ed text; STATUS_NOT_FOUND without a row. */
int sql_get_int(struct sql *sql, int64_t *out, struct error *err, const char *text, const char *types, ...);
int sql_get_text(struct sql *sql, char **out, struct error *err, const char *text, const char *types, ...);
int sql_script(struct sql *sql, const char *script, struct error *err); /* several statements, no parameters */
int64_t sql_last_id(struct sql *sql);
int64_t sql_changes(struct sql *sql);

#endif
