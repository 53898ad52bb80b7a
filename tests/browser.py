# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, for tests; skipped where there is none."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))),
  shutil.which("google-chrome"),
)
# Codes of the keys that tests press.
KEYS = {"Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
PATIENCE = 60  # seconds for what happens by itself


def command(*words, profile):
  if not BROWSER:
    pytest.skip("no chromium")
  flags = ["--headless", "--no-sandbox", "--disable-gpu"]
  return [BROWSER, *flags, f"--user-data-dir={profile}", *words]


def dom(address, profile, *words):
  """The page after its scripts, as HTML."""
  line = command("--dump-dom", *words, address, profile=profile)
  done = subprocess.run(line, capture_output=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout.decode()


class Page:
  """A page that is used as a person would; `opened` makes them.

  It speaks the DevTools protocol: messages in JSON, each ended by a zero byte.
  Unlike scripts in a page's copy it needs no change to the page or its policy.
  """

  def __init__(self, process):
    self.process = process
    self.number = 0
    self.events = []
    self.session = {}
    target = self.ask("Target.createTarget", url="about:blank")["targetId"]
    found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
    self.session = {"sessionId": found["sessionId"]}
    self.ask("Page.enable")

  def _read(self):
    data = bytearray()
    while (one := self.process.stdout.read(1)) != b"\0":
      assert one, "Chromium ended"
      data += one
    return json.loads(data)

  def ask(self, method, **params):
    """The answer to a command; events that come before it are kept."""
    self.number += 1
    words = {"id": self.number, "method": method, "params": params}
    data = json.dumps({**words, **self.session}).encode() + b"\0"
    self.process.stdin.write(data)
    self.process.stdin.flush()
    while (found := self._read()).get("id") != self.number:
      self.events.append(found)
    assert "result" in found, (method, found)
    return found["result"]

  def wait(self, method):
    """Reads until an event has come."""
    while True:
      for place, event in enumerate(self.events):
        if event.get("method") == method:
          return self.events.pop(place)["params"]
      self.events.append(self._read())

  def open(self, address):
    self.events.clear()
    assert "errorText" not in self.ask("Page.navigate", url=address)
    self.wait("Page.loadEventFired")

  def reload(self):
    self.events.clear()
    self.ask("Page.reload")
    self.wait("Page.loadEventFired")

  def run(self, script):
    """The value of a script, awaited, as JSON has it."""
    found = self.ask(
      "Runtime.evaluate",
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def press(self, key):
    for kind in ("keyDown", "keyUp"):
      self.ask(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=KEYS[key],
      )

  def click(self, name):
    """The middle of the element with an id, by the mouse."""
    box = self.run(
      f"(() => {{const e = document.getElementById({json.dumps(name)});"
      "e.scrollIntoView({block: 'center', behavior: 'instant'});"
      "const b = e.getBoundingClientRect();"
      "return [b.x + b.width / 2, b.y + b.height / 2]})()"
    )
    place = dict(x=box[0], y=box[1], button="left", clickCount=1)
    for kind in ("mousePressed", "mouseReleased"):
      self.ask("Input.dispatchMouseEvent", type=kind, **place)

  def downloaded(self, folder, act):
    """The one file that `act` downloads, read."""
    self.ask(
      "Browser.setDownloadBehavior",
      behavior="allow",
      downloadPath=str(folder),
      eventsEnabled=True,
    )
    before = set(os.listdir(folder))
    act()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
      found = set(os.listdir(folder)) - before
      done = [one for one in found if not one.endswith(".crdownload")]
      if done and len(found) == 1:
        return done[0], (folder / done[0]).read_text()
      time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


@contextlib.contextmanager
def opened(address, profile):
  """A `Page` at an address; the profile keeps what the page stores."""
  line = command("--remote-debugging-pipe", profile=profile)
  # Chromium reads commands from descriptor 3 and answers on 4.
  shell = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh", *line]
  pipe = subprocess.PIPE
  with subprocess.Popen(
    shell, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
  ) as process:
    try:
      page = Page(process)
      page.open(address)
      yield page
      process.stdin.close()
      process.wait(PATIENCE)
    finally:
      process.kill()
