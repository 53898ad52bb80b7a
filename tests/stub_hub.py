# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face hub as far as fetching goes, from folders on this machine.

A repository, of a model or of data, is a folder OWNER/NAME of what is served.
It answers what huggingface_hub asks: the files of a revision, and each of them.
"""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import threading
import urllib.parse

from huggingface_hub import constants

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def _answer(self, status, data, **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def do_GET(self):
    path = urllib.parse.unquote(self.path.partition("?")[0])
    words = path.strip("/").split("/")
    if words[0] == "datasets":
      del words[0]
    if words[:2] in (["api", "models"], ["api", "datasets"]):
      repository = pathlib.Path(self.server.folder, *words[2:4])
      if repository.is_dir():
        whole = [p for p in sorted(repository.rglob("*")) if p.is_file()]
        names = [str(p.relative_to(repository)) for p in whole]
        told = {
          "id": "/".join(words[2:4]),
          "sha": REVISION,
          "siblings": [{"rfilename": name} for name in names],
        }
        if words[4:5] == ["tree"]:
          told = [
            {
              "type": "file",
              "path": name,
              "size": place.stat().st_size,
              "oid": hashlib.sha1(place.read_bytes()).hexdigest(),
            }
            for name, place in zip(names, whole, strict=True)
          ]
        self._answer(
          200, json.dumps(told).encode(), Content_Type="application/json"
        )
        return
    elif words[2:3] == ["resolve"]:
      place = pathlib.Path(self.server.folder, *words[:2], *words[4:])
      if place.is_file():
        data = place.read_bytes()
        if self.command == "GET":
          self.server.fetched.append("/".join([*words[:2], *words[4:]]))
        tag = hashlib.sha256(data).hexdigest()
        self._answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=REVISION)
        return
      self._answer(404, b"", X_Error_Code="EntryNotFound")
      return
    self._answer(404, b"{}", X_Error_Code="RepoNotFound")

  do_HEAD = do_GET

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(folder):
  """Serves the repositories of a folder; `fetched` has the files it gave."""
  made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  made.folder, made.fetched = folder, []
  made.address = f"http://127.0.0.1:{made.server_port}"
  thread = threading.Thread(target=made.serve_forever, daemon=True)
  thread.start()
  try:
    yield made
  finally:
    made.shutdown()
    thread.join()
    made.server_close()


def environment(server, home):
  """Of a process that shall fetch from there, into a cache of its own."""
  return {
    **os.environ,
    "HF_ENDPOINT": server.address,
    "HF_HOME": str(home),
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
  }


def redirect(monkeypatch, server, cache):
  """This process fetches from there, into a cache of its own."""
  address = server.address + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "ENDPOINT", server.address)
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
