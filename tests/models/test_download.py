# SPDX-License-Identifier: Apache-2.0
"""Files at addresses of their own, from a server on this machine."""

import hashlib
import http.server
import pathlib
import threading

from huggingface_hub import constants
import pytest

from cc_jax.models import download, published

DATA = bytes(range(256)) * 5000
DIGITS = hashlib.sha256(DATA).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.server.asked.append(self.path)
    if self.path == "/missing":
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header("Content-Length", str(len(DATA)))
    self.end_headers()
    self.wfile.write(DATA[: len(DATA) // 2] if "cut" in self.path else DATA)

  def log_message(self, *_):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  made = http.server.HTTPServer(("127.0.0.1", 0), Handler)
  made.asked = []
  thread = threading.Thread(target=made.serve_forever, daemon=True)
  thread.start()
  # The rows have https; what is fetched here is not.
  monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  real = download._download
  at = f"http://127.0.0.1:{made.server_port}"
  monkeypatch.setattr(
    download,
    "_download",
    lambda address, target: real(address.replace("https://x", at), target),
  )
  yield made
  made.shutdown()
  thread.join()
  made.server_close()


def fetch(path, file):
  entry = published.Entry("inception", "FID", f"https://x/{path}", file)
  return download.fetch("row", entry, "model", None)


def test_a_file_is_fetched_once(server, tmp_path):
  for _ in range(2):
    found = fetch("weights", f"weights-{DIGITS}.pth")
    assert pathlib.Path(found).read_bytes() == DATA
  assert found == str(tmp_path / f"cc_jax/weights-{DIGITS}.pth")
  assert server.asked == ["/weights"]


@pytest.mark.parametrize(
  ("path", "file", "words"),
  [
    ("missing", "a.pth", "404"),
    ("cut", "a.pth", "broke off after 640000 of 1280000 bytes"),
    ("weights", "a-00000000.pth", f"begins with {DIGITS}, expected 00000000"),
  ],
)
def test_a_file_that_is_not_whole_does_not_appear(
  server, tmp_path, path, file, words
):
  with pytest.raises(ValueError, match=words) as caught:
    fetch(path, file)
  assert "cannot fetch row (https://x/" in str(caught.value)
  assert "Download that file and name the copy" in str(caught.value)
  assert not list((tmp_path / "cc_jax").iterdir())


def test_offline_nothing_is_asked_for(server, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
    fetch("weights", "a.pth")
  assert server.asked == []


def test_rows_of_files_have_names_that_say_what_they_are():
  for name, entry in published.FILES.items():
    assert entry.repository.startswith("https://"), name
    assert entry.subfolder.endswith((".pth", ".pt", ".ckpt")), name
