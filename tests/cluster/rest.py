"""REST client of the tests: HTTP/1.1 over the local socket or over TLS with a client certificate, operations, WebSockets.

Only Python's standard library. Every wait is bounded. A refused request raises RestError with the HTTP code and the text, so that a
scenario can check both; `request` returns the raw reply for tests that look at headers or broken answers.
"""
import base64
import hashlib
import http.client
import json
import os
import socket
import ssl
import struct
import threading
import time
import urllib.parse

REQUEST_SECONDS = 60  # default limit of one request


class RestError(Exception):
    """An answer of type error: `code` is the HTTP code, `text` what the server says."""

    def __init__(self, code, text, what=""):
        super().__init__(f"{what}: {code} {text}" if what else f"{code} {text}")
        self.code = code
        self.text = text


class Reply:
    def __init__(self, code, headers, body):
        self.code = code
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def metadata(self):
        return self.json["metadata"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _TlsConnection(http.client.HTTPConnection):
    """Pins the certificate by its fingerprint, as the stock clients do; no name is verified."""

    def __init__(self, address, context, fingerprint, timeout):
        host, port = address.rsplit(":", 1)
        super().__init__(host, int(port), timeout=timeout)
        self.context = context
        self.fingerprint = fingerprint

    def connect(self):
        raw = socket.create_connection((self.host, self.port), timeout=self.timeout)
        self.sock = self.context.wrap_socket(raw, server_hostname=self.host)
        seen = hashlib.sha256(self.sock.getpeercert(binary_form=True)).hexdigest()
        if self.fingerprint and seen != self.fingerprint:
            self.sock.close()
            raise ssl.SSLError(f"{self.host}:{self.port} presents {seen}, not {self.fingerprint}")


class Client:
    """One caller of one member. A new connection per request unless keep_alive."""

    def __init__(self, unix=None, address=None, cert=None, fingerprint=None, timeout=REQUEST_SECONDS,
                 keep_alive=False):
        self.unix = unix
        self.address = address
        self.fingerprint = fingerprint
        self.timeout = timeout
        self.keep_alive = keep_alive
        self.connection = None
        self.context = None
        if address:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
            if cert:
                self.context.load_cert_chain(cert + ".crt", cert + ".key")

    def connect(self, timeout=None):
        timeout = timeout or self.timeout
        if self.unix:
            return _UnixConnection(self.unix, timeout)
        return _TlsConnection(self.address, self.context, self.fingerprint, timeout)

    def request(self, method, path, body=None, headers=None, timeout=None):
        """Sends `body` (None, bytes, or anything that JSON can say) and returns the Reply, whatever its code."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = self.connection or self.connect(timeout)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            reply = Reply(answer.status, answer.headers, answer.read())
        except BaseException:
            self.connection = None
            connection.close()
            raise
        if self.keep_alive:
            self.connection = connection
        else:
            connection.close()
        return reply

    def call(self, method, path, body=None, headers=None, timeout=None, wait=True):
        """The metadata of a success; of an operation after its end if `wait`. RestError for everything else."""
        reply = self.request(method, path, body, headers, timeout)
        what = f"{method} {path}"
        try:
            envelope = reply.json
        except ValueError:
            raise RestError(reply.code, reply.body[:200].decode(errors="replace"), what) from None
        if not isinstance(envelope, dict) or envelope.get("type") not in ("sync", "async"):
            text = envelope.get("error") if isinstance(envelope, dict) else str(envelope)
            raise RestError(reply.code, text, what)
        if envelope["type"] == "async" and wait:
            return self.wait(envelope["operation"].split("?")[0], timeout or self.timeout)
        return envelope["metadata"]

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def put(self, path, body=None, **options):
        return self.call("PUT", path, body, **options)

    def patch(self, path, body=None, **options):
        return self.call("PATCH", path, body, **options)

    def post(self, path, body=None, **options):
        return self.call("POST", path, body, **options)

    def delete(self, path, **options):
        return self.call("DELETE", path, **options)

    def wait(self, operation, timeout=REQUEST_SECONDS):
        """Waits for an operation; returns it when it succeeded."""
        seconds = max(1, int(timeout))
        done = self.call("GET", f"{operation}/wait?timeout={seconds}", timeout=seconds + 10)
        if done["status_code"] < 200:
            raise RestError(done["status_code"], f"still {done['status']} after {seconds} s: {done['description']}")
        if done["status_code"] != 200:
            raise RestError(done["status_code"], done["err"], done["description"])
        return done

    def websocket(self, path, timeout=None):
        return WebSocket(self.connect(timeout), path)

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MESSAGE_BYTES_MAX = 64 << 20


class WebSocket:
    """RFC 6455 client. Pings are answered inside receive()."""

    def __init__(self, connection, path):
        key = base64.b64encode(os.urandom(16)).decode()
        connection.request("GET", path, headers={
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key})
        # http.client would close the socket with the reply, so the reply to an upgrade is read here.
        self.sock = connection.sock
        self.buffer = b""
        head = self._read_head()
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            body = self.buffer
            self.sock.close()
            raise RestError(status, (head + b"\n" + body).decode(errors="replace"), f"websocket {path}")
        want = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
        if want not in head:
            raise RestError(status, "wrong Sec-WebSocket-Accept", f"websocket {path}")
        self.closed = False
        self.lock = threading.Lock()

    def _read_head(self):
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("closed during the upgrade")
            self.buffer += data
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return head

    def _read(self, count, deadline):
        while len(self.buffer) < count:
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("websocket closed without a close frame")
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def send(self, payload, opcode=BINARY):
        if isinstance(payload, str):
            payload = payload.encode()
        mask = os.urandom(4)
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        keys = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")
        with self.lock:
            self.sock.settimeout(REQUEST_SECONDS)
            self.sock.sendall(head + mask + masked)

    def barrier(self):
        """End of stream in the exec protocol: an empty text message."""
        self.send(b"", TEXT)

    def receive(self, timeout=REQUEST_SECONDS):
        """(opcode, payload) of the next message; (CLOSE, payload) at the end. TimeoutError after `timeout`."""
        deadline = time.monotonic() + timeout
        kind, message = None, b""
        while True:
            first, second = self._read(2, deadline)
            size = second & 0x7F
            if second & 0x80:
                raise ConnectionError("the server masked a frame")
            if size == 126:
                size = struct.unpack("!H", self._read(2, deadline))[0]
            elif size == 127:
                size = struct.unpack("!Q", self._read(8, deadline))[0]
            if size > MESSAGE_BYTES_MAX:
                raise ConnectionError(f"frame of {size} bytes")
            payload = self._read(size, deadline)
            opcode = first & 0x0F
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode == CLOSE:
                self.close(payload)
                return CLOSE, payload
            elif opcode != PONG:
                kind = kind or opcode
                message += payload
                if first & 0x80:
                    return kind, message

    def close(self, payload=struct.pack("!H", 1000)):
        if self.closed:
            return
        self.closed = True
        try:
            self.send(payload, CLOSE)
        except OSError:
            pass
        self.sock.close()


class EventStream:
    """Collects the events of one member in a thread until close()."""

    def __init__(self, client, types="operation,lifecycle", query=""):
        self.events = []
        self.error = None
        self.changed = threading.Condition()
        self.socket = client.websocket(f"/1.0/events?type={types}{query}")
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while True:
            try:
                kind, payload = self.socket.receive(30)
            except (OSError, ConnectionError, ValueError) as error:
                with self.changed:
                    self.error = error
                    self.changed.notify_all()
                return
            with self.changed:
                if kind == CLOSE:
                    self.error = ConnectionError("closed by the server")
                    self.changed.notify_all()
                    return
                self.events.append(json.loads(payload))
                self.changed.notify_all()

    def matching(self, predicate):
        with self.changed:
            return [event for event in self.events if predicate(event)]

    def wait_for(self, predicate, seconds, what="event"):
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                for event in self.events:
                    if predicate(event):
                        return event
                left = deadline - time.monotonic()
                if left <= 0 or self.error:
                    raise AssertionError(f"no {what} within {seconds} s ({self.error or 'stream open'}); "
                                         f"{len(self.events)} events, last: {self.events[-3:]}")
                self.changed.wait(left)

    def close(self):
        self.socket.close()
        self.thread.join(5)


class Execution:
    """One exec over WebSockets: streams are opened as the stock client does (control, 0, 1, 2)."""

    def __init__(self, client, instance, command, interactive=False, control=True, **fields):
        self.client = client
        body = {"command": command, "wait-for-websocket": True, "interactive": interactive,
                "environment": {}, **fields}
        reply = client.request("POST", f"/1.0/instances/{urllib.parse.quote(instance)}/exec", body)
        envelope = reply.json
        if envelope["type"] != "async":
            raise RestError(reply.code, envelope["error"], f"exec in {instance}")
        self.operation = envelope["operation"].split("?")[0]  # LXD appends the project here, which covey must not
        self.fds = envelope["metadata"]["metadata"]["fds"]
        self.streams = {}
        names = (["control"] if control else []) + (["0"] if interactive else ["0", "1", "2"])
        for name in names:
            self.streams[name] = client.websocket(f"{self.operation}/websocket?secret={self.fds[name]}")

    def read_all(self, name, seconds=REQUEST_SECONDS):
        """Everything up to the end of stream `name`, and how it ended: barrier, close or eof."""
        data = b""
        deadline = time.monotonic() + seconds
        while True:
            try:
                kind, payload = self.streams[name].receive(max(0.01, deadline - time.monotonic()))
            except ConnectionError:
                return data, "eof"
            if kind == CLOSE:
                return data, "close"
            if kind == TEXT and not payload:
                return data, "barrier"
            data += payload

    def signal(self, number):
        self.streams["control"].send(json.dumps({"command": "signal", "args": None, "signal": number}), TEXT)

    def resize(self, width, height):
        self.streams["control"].send(json.dumps(
            {"command": "window-resize", "args": {"width": str(width), "height": str(height)}, "signal": 0}), TEXT)

    def result(self, seconds=REQUEST_SECONDS):
        """The exit code after the operation's end."""
        done = self.client.wait(self.operation, seconds)
        return done["metadata"]["return"]

    def close(self):
        for stream in self.streams.values():
            stream.close()


def execute(client, instance, command, stdin=b"", seconds=REQUEST_SECONDS, **fields):
    """Runs a command to its end: (exit code, stdout, stderr). Input and both outputs flow at the same time."""
    run = Execution(client, instance, command, **fields)
    outputs = {}

    def reader(name):
        outputs[name] = run.read_all(name, seconds)

    threads = [threading.Thread(target=reader, args=(name,), daemon=True) for name in ("1", "2")]
    for thread in threads:
        thread.start()
    for start in range(0, len(stdin), 32768):
        run.streams["0"].send(stdin[start:start + 32768])
    run.streams["0"].barrier()
    code = run.result(seconds)
    for thread in threads:
        thread.join(seconds)
    run.close()
    for name in ("1", "2"):
        if outputs.get(name, (b"", "nothing"))[1] != "barrier":
            raise AssertionError(f"stream {name} of {command} ended with {outputs.get(name, ('', 'nothing'))[1]}")
    return code, outputs["1"][0], outputs["2"][0]
