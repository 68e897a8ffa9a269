"""Make sure that a Chromium is there for the browser tests: `python tests/browser/chromium.py`.

Debian's package is installed where that is possible; nothing is ever downloaded by Playwright itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The path of a Chromium: ``T4S_CHROMIUM``, or the first of `NAMES` on the path; "" without one."""
    return os.environ.get("T4S_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")


def main() -> int:
    if not chromium() and shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing Debian's package chromium, for the browser tests.", flush=True)
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-qq", *command], check=True, stdout=subprocess.DEVNULL)
    if not chromium():
        print("The browser tests need Chromium: install it (on Debian: sudo apt-get install chromium), or "
              "give its path in T4S_CHROMIUM.", file=sys.stderr)
        return 1
    print(f"Chromium: {chromium()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
