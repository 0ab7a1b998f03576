"""Makes the seeds of the fuzz targets: seeds.py OUT. Messages are written here in protobuf's text form and encoded by protoc."""
import base64
import io
import hashlib
import json
import pathlib
import re
import struct
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = pathlib.Path(sys.argv[1])

# As in types.h, in its order.
TYPES = ["covey.v1.Profile", "covey.v1.Instance", "covey.v1.Operation", "covey.v1.Event", "covey.v1.Image", "covey.v1.ServerInfo", "google.protobuf.Struct",
         "covey.internal.v1.RaftFrame"]

MESSAGES = {
    "covey.v1.Profile": 'name: "p" description: "d" config {key: "a.b" value: "1"} devices {key: "root" value {options {key: "type" value: "disk"}}} used_by: "/1.0/x"',
    "covey.v1.Instance": 'name: "c1" config {key: "limits.cpu" value: "2"}',
    "covey.v1.Operation": 'id: "11111111-1111-4111-8111-111111111111" class: "task" created_at {seconds: 1700000000 nanos: 5} status_code: 103 '
                          'resources {key: "instances" value {}} metadata {fields {key: "k" value {list_value {values {number_value: 1.5} values {null_value: NULL_VALUE}}}}}',
    "covey.v1.Event": 'type: "lifecycle" timestamp {seconds: -1} metadata {fields {key: "a" value {struct_value {fields {key: "b" value {bool_value: true}}}}}} number: 9',
    "covey.v1.Image": 'fingerprint: "abcd" size: 12 properties {key: "os" value: "busybox"}',
    "covey.v1.ServerInfo": 'config {fields {key: "core.https_address" value {string_value: "127.0.0.1:8443"}}}',
    "google.protobuf.Struct": 'fields {key: "n" value {number_value: 9007199254740993}} fields {key: "s" value {string_value: "\\303\\244"}}',
}

CONFIGURATION = struct.pack("<BQ", 1, 1) + struct.pack("<Q", 1) + b"127.0.0.1:1\0" + b"\1"
CONFIGURATION += bytes(-len(CONFIGURATION) % 8)
OCTAL = "".join("\\%03o" % b for b in CONFIGURATION)
FRAMES = [
    "request_vote {version: 2 term: 3 candidate_id: 7 last_log_index: 9 last_log_term: 2 pre_vote: true}",
    "request_vote_result {version: 2 term: 3 vote_granted: true features: 1 capacity: 10}",
    'append_entries {version: 1 term: 3 prev_log_index: 4 prev_log_term: 2 leader_commit: 4 entries {term: 3 type: 1 data: "12345678"} entries {term: 3 type: 2 data: "abcdefgh"}}',
    f'append_entries {{version: 1 term: 3 prev_log_index: 4 prev_log_term: 2 entries {{term: 3 type: 3 data: "{OCTAL}"}}}}',
    "append_entries_result {version: 1 term: 3 rejected: 5 last_log_index: 4}",
    'install_snapshot {version: 1 term: 3 last_index: 9 last_term: 3 configuration_index: 1 configuration {id: 1 address: "127.0.0.1:1" role: 1} '
    'offset: 0 size: 8 data: "12345678" sha256: "' + "x" * 32 + '"}',
    "timeout_now {version: 1 term: 3 last_log_index: 9 last_log_term: 3}",
    "read_probe {term: 3 round: 4}",
    "read_probe_result {term: 3 round: 4 ok: true}",
]

JSONS = {
    "covey.v1.Profile": {"name": "p", "description": None, "config": {"a": "1"}, "devices": {"root": {"type": "disk", "path": "/"}}, "used_by": []},
    "covey.v1.Instance": {"name": "c1", "config": {"limits.cpu": "2"}, "created_at": "2024-01-02T03:04:05.678Z", "ephemeral": True},
    "covey.v1.Operation": {"id": "x", "created_at": "0001-01-01T00:00:00Z", "status_code": 103, "resources": {"instances": ["/1.0/instances/a"]}, "metadata": {"a": [1, 1.5, None]}},
    "covey.v1.Event": {"type": "logging", "timestamp": "2024-01-02T03:04:05+02:00", "metadata": {"a": {"b": [True]}}},
    "covey.v1.Image": {"fingerprint": "ab", "size": 12, "properties": {"os": "x"}, "public": False},
    "covey.v1.ServerInfo": {"config": {"core.https_address": ":8443"}},
    "google.protobuf.Struct": {"n": 1e300, "m": -1, "s": "ä"},
}

METADATA = """architecture: x86_64
creation_date: 1700000000
expiry_date: 1800000000
properties: {os: busybox, release: "1", description: |
    text}
templates:
  /etc/hostname:
    when: [create, copy]
"""

PRESEED = """config:
  core.https_address: 10.0.0.1:8443
  images.auto_update_interval: 15
storage_pools:
- {name: data, driver: dir, config: {size: "10"}}
profiles:
- &p
  name: default
  devices:
    root: {path: /, pool: data, type: disk}
cluster:
  enabled: true
  server_name: n1
  cluster_certificate: |
    -----BEGIN CERTIFICATE-----
    MIIB
  member_config:
  - {entity: storage-pool, name: data, key: source, value: ~}
"""


def put(target, name, data):
    folder = OUT / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def encode(message, text):
    files = [str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto/covey").rglob("*.proto")]
    return subprocess.run(["protoc", f"-I{ROOT / 'proto'}", "-I/usr/include", f"--encode={message}", *files, "google/protobuf/struct.proto"],
                          input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def number(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def signed(value):
    return number(value * 2 if value >= 0 else -value * 2 - 1)


def text(value):
    return b"\3" + number(len(value)) + value


def rowlog():
    """Bodies for the tables of fuzz_rowlog.c: (tables, operations, body)."""
    names = number(1) + b"t" + number(1) + b"w"
    integer, null = b"\1" + signed(5), b"\5"
    row = integer + b"\2" + struct.pack("<d", 1.5) + text(b"z") + b"\4" + number(2) + b"\0\1"
    yield 2, 1, names + b"\1\0" + signed(3) + row
    yield 2, 1, names + b"\2\0" + signed(1) + row
    yield 2, 1, names + b"\3\0" + signed(1) + signed(-9) + row
    yield 2, 2, names + b"\4\0" + signed(1) + b"\5\0" + signed(77)
    yield 2, 1, names + b"\1\1" + text(b"b") + integer + null
    yield 2, 1, names + b"\2\1" + text(b"a") + b"\1" + signed(1) + text(b"a") + b"\1" + signed(1) + null
    yield 2, 1, names + b"\4\1" + text(b"a") + b"\1" + signed(1)


def whole_entry(tables, count, body, kind=1):
    head = struct.pack("<IBBHQIIIIq", 0x31765943, kind, 1, 0, 1, 1, count, tables, len(body), 0)
    return head + body + bytes(-len(body) % 8)


def client_hellos():
    source = (ROOT / "tests/unit/server/client_hello_test.c").read_text()
    for name, body in re.findall(r"static const uint8_t (\w+)\[\] = \{(.*?)\};", source, re.S):
        data = bytes(int(x, 16) for x in re.findall(r"0x([0-9a-f]{2})\b", body))
        if len(data) > 100:
            yield name, data


def tarball(compression):
    """A unified image, small."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as tar:
        for name, data in (("./metadata.yaml", METADATA.encode()), ("rootfs/etc/hostname", b"x\n"), ("rootfs/../up", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def http(verb, path, body=b"", **headers):
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"{verb} {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ws_frame(opcode, data, final=True):
    """A client's WebSocket frame with an empty mask."""
    return bytes([opcode | 0x80 * final, 0x80 | len(data)]) + bytes(4) + data


def gateway():
    upgrade = dict(Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version=13, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==")
    part = 'Content-Disposition: form-data; name="{}"; filename="f"\r\n\r\nabc\r\n'
    form = ("--b\r\n" + part.format("metadata") + "--b\r\n" + part.format("rootfs") + "--b--\r\n").encode()
    yield "get", http("GET", "/1.0") + http("GET", "/1.0/profiles/p%2Fx?project=a%20b&recursion=1")
    yield "json", http("POST", "/1.0/profiles", b'{"name":"p","config":{"a":"b"},"devices":{"root":{"type":"disk"}}}')
    yield "patch", http("PATCH", "/1.0", b'{"config":{"user.a":"b"}}', If_Match="abc")
    yield "chunked", b"PUT /1.0 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"con\r\n8\r\nfig\":{}}\r\n0\r\n\r\n"
    yield "file", http("POST", "/1.0/images", b"abcdefgh", Content_Type="application/octet-stream", X_LXD_filename="f", X_LXD_properties="os=b%20x&a=b")
    yield "form", http("POST", "/1.0/images", form, Content_Type="multipart/form-data; boundary=b")
    yield "export", http("GET", "/1.0/images/two/export")
    yield "events", http("GET", "/1.0/events?type=lifecycle,operation", **upgrade) + b"\xff" + ws_frame(9, b"ping") + ws_frame(8, b"\x03\xe8")
    yield "stream", (http("GET", "/1.0/operations/3f1c8a52-0b1e-4d0c-9f8e-1a2b3c4d5e6f/websocket?secret=s3cret", **upgrade) + b"\xff" + ws_frame(1, b'{"command":"signal"}')
                     + ws_frame(2, b"ab", False) + ws_frame(0, b"c") + ws_frame(8, b""))


for i, kind in enumerate(TYPES):
    if kind in MESSAGES:
        put("codec_wire", kind, bytes([i]) + encode(kind, MESSAGES[kind]))
    if kind in JSONS:
        put("codec_json", kind, bytes([i]) + json.dumps(JSONS[kind]).encode())
for i, frame in enumerate(FRAMES):
    data = encode("covey.internal.v1.RaftFrame", frame)
    put("raft_wire", str(i), data)
    put("codec_wire", f"frame{i}", bytes([TYPES.index("covey.internal.v1.RaftFrame")]) + data)
for i, (tables, count, body) in enumerate(rowlog()):
    put("rowlog", f"body{i}", bytes([1, tables, count, 0]) + body)
    put("rowlog", f"entry{i}", b"\0" + whole_entry(tables, count, body))
put("rowlog", "schema", b"\0" + whole_entry(0, 0, b"SELECT 1", 2))
put("rowlog", "digest", b"\0" + whole_entry(0, 0, b"", 3))
for name, data in client_hellos():
    put("client_hello", name, data)
for key in ("server_name", "client_name"):
    token = json.dumps({key: "n1", "fingerprint": "ab" * 32, "addresses": ["127.0.0.1:8443", "[::1]:1"], "secret": "cd" * 32, "expires_at": "2030-01-01T00:00:00Z"})
    for target in ("token", "client_token"):
        put(target, key, token)
        put(target, key + "_base64", base64.b64encode(token.encode()))
put("metadata", "plain", METADATA)
put("metadata", "small", "architecture: amd64\ncreation_date: 1\n")
put("preseed", "plain", PRESEED)
put("preseed", "alias", "a: &x [1, ~, true, 'q', 12:30, \"\\n\"]\nb: *x\n")
for i, command in enumerate(({"command": "window-resize", "args": {"width": "80", "height": "24"}}, {"command": "signal", "signal": 15})):
    put("exec_control", str(i), json.dumps(command))
for i, path in enumerate(("/1.0", "/1.0/instances/c1/state?project=default&recursion=2", "/1.0/containers/a%2Fb/exec", "/1.0/images/aliases/x/y?a=%C3%A4&a=+")):
    put("route", str(i), path)
for i, expression in enumerate(("name eq c1 and not status eq Running", "config.limits.cpu=2 or location eq n1", "a.b ne true")):
    put("filter", str(i), expression + "\n" + json.dumps({"name": "c1", "status": "Running", "config": {"limits.cpu": "2"}, "a": {"b": True}}))
for compression in ("", "gz", "xz"):
    put("archive", "tar" + compression, tarball(compression))
put("archive", "name", "./rootfs//a/../b/")
for name, data in gateway():
    put("gateway", name, data)
for size in (100, 4096):
    body = b"CVYBACKP" + struct.pack("<IIQQq", 1, 2, 7, 100, 1) + b"01234567-89ab-cdef-0123-456789abcdef".ljust(40, b"\0") + struct.pack("<Q", size)
    body += b"SQLite format 3\0".ljust(size, b"\0")
    put("backup", str(size), body + hashlib.sha256(body).digest())
