"""Writes the SQL of storage/schema as C: embed.py OUT STEP.sql… local.sql

The first line of every step after the first declares whether code that knows it may serve before it was applied:
"-- additive: why" or "-- incompatible: why" (docs/design/upgrade.md)."""
import os
import re
import sys


def literal(text):
    out = []
    for line in text.splitlines():
        out.append('    "' + line.replace("\\", "\\\\").replace('"', '\\"') + '\\n"')
    return "\n".join(out)


def additive(path):
    with open(path) as sql:
        declared = re.match(r"-- (additive|incompatible): \S", sql.readline())
    if not declared:
        sys.exit('the first line of %s must be "-- additive: why" or "-- incompatible: why"' % path)
    return declared.group(1) == "additive"


def main():
    out, files = sys.argv[1], sys.argv[2:]
    steps = sorted(f for f in files if os.path.basename(f) != "local.sql")
    local = [f for f in files if os.path.basename(f) == "local.sql"][0]
    for number, path in enumerate(steps, 1):
        if not os.path.basename(path).startswith("%03d_" % number):
            sys.exit("schema steps must be numbered without a gap: %s" % path)
    with open(out, "w") as c:
        c.write('#include "storage/db_private.h"\n\nconst struct schema_step schema__steps[] = {\n')
        for number, path in enumerate(steps, 1):
            serves = number > 1 and additive(path)
            c.write('  {"%s", %s,\n%s},\n' % (os.path.basename(path)[:-4], "true" if serves else "false", literal(open(path).read())))
        c.write("};\nconst size_t schema__step_count = %d;\nconst char *const schema__local =\n%s;\n" % (len(steps), literal(open(local).read())))


main()
