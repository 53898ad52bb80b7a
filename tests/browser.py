# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, for tests; skipped where there is none."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))),
  shutil.which("google-chrome"),
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def run(*words, profile):
  """What Chromium prints."""
  if not BROWSER:
    pytest.skip("no chromium")
  command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
  command += [f"--user-data-dir={profile}"]
  done = subprocess.run([*command, *words], capture_output=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout.decode()


def dom(address, profile, *words):
  """The page after its scripts, as HTML."""
  return run("--dump-dom", *words, address, profile=profile)


def with_script(page, text, path):
  """Writes a copy of a page that also runs a test's script; its address.

  The page's policy would forbid that, so the copy is without it.
  """
  changed, count = POLICY.subn("", page)
  assert count == 1
  path.write_text(changed.replace("</body>", f"<script>{text}</script></body>"))
  return path.as_uri()
