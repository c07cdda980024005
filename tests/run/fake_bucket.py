"""A bucket `gs://bucket` that is a local directory: for etils.epath a backend, for tensorstore (it
has a client of its own) a server of the calls of Google's JSON API that it makes."""

import contextlib
import http.server
import json
import os
import pathlib
import sys
import threading
import types
import urllib.parse

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

BUCKET = "bucket"


class Mapped(type(backend.os_backend)):
    """gs://bucket/x is ROOT/bucket/x; directories come into being with their files."""

    root: pathlib.Path

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found) or name == "local":
            return found

        def call(*args, **kwargs):
            args = [self.local(arg) for arg in args]
            if name == "open" and "w" in (*args[1:], kwargs.get("mode", ""))[0]:
                os.makedirs(os.path.dirname(args[0]), exist_ok=True)
            result = found(*args, **kwargs)
            if name == "glob":
                return [f"gs://{os.path.relpath(path, self.root)}" for path in result]
            return result

        return call

    def local(self, path):
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
        if isinstance(text, str) and text.startswith("gs://"):
            return str(self.root / text.removeprefix("gs://"))
        return path


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing."""

    def _file(self, name):
        return self.server.root / BUCKET / name

    def _send(self, code, body=b"", **headers):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _described(self, path):
        status = path.stat()
        name = str(path.relative_to(self.server.root / BUCKET))
        made = str(status.st_mtime_ns)
        return {"name": name, "size": str(status.st_size), "generation": made, "bucket": BUCKET}

    def do_POST(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._file(query["name"][0])
        if query.get("ifGenerationMatch") == ["0"] and path.exists():
            self._send(412)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._send(200, json.dumps(self._described(path)).encode())

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        name = urllib.parse.unquote(url.path.partition(f"/b/{BUCKET}/o")[2].lstrip("/"))
        if not name:
            prefix = query.get("prefix", [""])[0]
            every = (p for p in (self.server.root / BUCKET).rglob("*") if p.is_file())
            items = [self._described(p) for p in every]
            items = [item for item in items if item["name"].startswith(prefix)]
            self._send(200, json.dumps({"items": items}).encode())
            return
        path = self._file(name)
        if not path.is_file():
            self._send(404)
            return
        content, generation = path.read_bytes(), self._described(path)["generation"]
        if query.get("ifGenerationNotMatch") == [generation]:
            self._send(304)
            return
        size, asked = len(content), self.headers.get("Range")
        headers = {"x-goog-generation": generation}
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin = int(first) if first else size - int(last)
            end = min(int(last) if first and last else size - 1, size - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{size}"
            self._send(206, content[begin : end + 1], **headers)
            return
        self._send(200, content, **headers)

    def do_DELETE(self):
        name = urllib.parse.unquote(self.path.partition(f"/b/{BUCKET}/o/")[2].partition("?")[0])
        self._file(name).unlink(missing_ok=True)
        self._send(204)


@contextlib.contextmanager
def bucket(root: pathlib.Path, monkeypatch):
    """Makes gs://bucket the directory ROOT/bucket; yields that."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root = root
    mapped = Mapped()
    mapped.root = root
    (root / BUCKET).mkdir(parents=True)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", mapped)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", (mapped,))
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    for name in ("google.cloud", "google.cloud.storage"):  # named at the start; orbax asks it below
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield root / BUCKET
    finally:
        server.shutdown()
        server.server_close()
