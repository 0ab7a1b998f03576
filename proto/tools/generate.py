#!/usr/bin/env python3
"""Generates C from the contract: called by proto/CMakeLists.txt, writes below --out only.

  contract.desc        FileDescriptorSet of the original files (imports and comments included)
  contract_blob.c      the same bytes, to be linked
  contract_table.c     pointers to every protobuf-c message and service descriptor
  <path>.pb-c.[ch]     protobuf-c code of every file

protoc-c refuses proto3 `optional`, so it gets copies in which `optional T x = n;` reads `oneof _x { T x = n; }`, which is the
same on the wire (and what protoc itself makes of it). Files whose content did not change keep their time stamp, so a change
of one .proto rebuilds only what depends on it. Any failure ends with a message and a non-zero exit code."""
import argparse
import os
import re
import subprocess
import sys
import tempfile

# Comments and strings are tokens of their own, so that their content is never rewritten.
TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|[A-Za-z_][\w.]*|\s+|.', re.S)


def is_blank(token):
    return token.isspace() or token.startswith("//") or token.startswith("/*")


def rewrite_optional(text, name):
    """Returns the text with every proto3 `optional` field put into a oneof of one member; line numbers stay."""
    out, tokens, i, at_start = [], TOKEN.findall(text), 0, True
    while i < len(tokens):
        token = tokens[i]
        if token == "optional" and at_start:
            end, words = i + 1, []
            while end < len(tokens) and tokens[end] != ";":
                if not is_blank(tokens[end]):
                    words.append(tokens[end])
                end += 1
            if end == len(tokens) or "=" not in words or words.index("=") < 2:
                sys.exit(f"{name}: cannot read an optional field near: {''.join(tokens[i:i + 12])!r}")
            field = words[words.index("=") - 1]
            out.append(f"oneof _{field} {{" + "".join(tokens[i + 1:end]) + "; }")
            i = end + 1
            continue
        if not is_blank(token):
            at_start = token in "{};"
        out.append(token)
        i += 1
    return "".join(out)


def write_if_changed(path, data):
    try:
        with open(path, "rb") as f:
            if f.read() == data:
                return
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "wb") as f:
        f.write(data)
    os.replace(path + ".new", path)


def blob_source(data):
    lines = ['/* Generated: the contract as a serialized google.protobuf.FileDescriptorSet. */\n#include <stddef.h>\n',
             'extern const unsigned char contract_blob[];\nextern const size_t contract_blob_size;\n',
             f'const size_t contract_blob_size = {len(data)}u;\nconst unsigned char contract_blob[{len(data) + 1}] =\n']
    for at in range(0, len(data), 48):
        lines.append('"' + "".join(f"\\{byte:03o}" for byte in data[at:at + 48]) + '"\n')
    lines.append(";\n")
    return "".join(lines).encode()


def table_source(headers):
    lines = ["/* Generated: every descriptor that protobuf-c made. */\n#include <protobuf-c/protobuf-c.h>\n"]
    for kind, table in (("Message", "contract_messages"), ("Service", "contract_services")):
        pattern = re.compile(rf"^extern const ProtobufC{kind}Descriptor (\w+);", re.M)
        names = sorted({name for header in headers for name in pattern.findall(header)})
        ctype = f"const ProtobufC{kind}Descriptor"
        lines += [f"extern {ctype} {name};\n" for name in names]
        lines.append(f"extern {ctype} *const {table}[];\nextern const size_t {table}_count;\n")
        lines.append(f"const size_t {table}_count = {len(names)}u;\n")
        lines.append(f"{ctype} *const {table}[] = {{\n" + "".join(f"    &{name},\n" for name in names) + "    NULL,\n};\n")
    return "".join(lines).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protoc", required=True)
    parser.add_argument("--plugin", required=True, help="protoc-gen-c")
    parser.add_argument("--root", required=True, help="folder that our files are named relative to")
    parser.add_argument("--include", required=True, help="folder that holds google/protobuf/descriptor.proto")
    parser.add_argument("--out", required=True)
    parser.add_argument("--prefix", default="contract", help="base name of the blob and the table")
    parser.add_argument("--system", action="append", default=[], help="file of --include to generate as well")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as tmp:
        desc = os.path.join(tmp, "contract.desc")
        run = [args.protoc, "-I", args.root, "-I", args.include]
        subprocess.run(run + ["--include_imports", "--include_source_info", f"--descriptor_set_out={desc}"] +
                       args.files + args.system, check=True)
        copies, made = os.path.join(tmp, "in"), os.path.join(tmp, "out")
        os.mkdir(made)
        for name in args.files:
            with open(os.path.join(args.root, name), encoding="utf-8") as f:
                write_if_changed(os.path.join(copies, name), rewrite_optional(f.read(), name).encode())
        subprocess.run([args.protoc, "-I", copies, "-I", args.include, f"--plugin=protoc-gen-c={args.plugin}",
                        f"--c_out={made}"] + args.files + args.system, check=True)
        headers = []
        for name in args.files + args.system:
            for end in (".pb-c.h", ".pb-c.c"):
                path = name[:-len(".proto")] + end
                with open(os.path.join(made, path), "rb") as f:
                    data = f.read()
                write_if_changed(os.path.join(args.out, path), data)
                if end == ".pb-c.h":
                    headers.append(data.decode())
        with open(desc, "rb") as f:
            data = f.read()
        write_if_changed(os.path.join(args.out, f"{args.prefix}.desc"), data)
        write_if_changed(os.path.join(args.out, f"{args.prefix}_blob.c"), blob_source(data))
        write_if_changed(os.path.join(args.out, f"{args.prefix}_table.c"), table_source(headers))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as e:
        sys.exit(e.returncode or 1)
