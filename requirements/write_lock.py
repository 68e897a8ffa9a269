"""Write requirements/lock.txt: the versions installed here of everything that the workbook needs.

`make lock` installs the newest versions that fit pyproject.toml into an environment of its own and
runs this there. Only packages that pyproject.toml asks for, directly or through others, are listed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent

HEADER = """\
# The versions of everything, for Python 3.11: the one place where versions are written.
# `make` and environment.yml install from here. To change them: edit pyproject.toml, run `make lock`.
# Packages that exist for one system only carry a marker; what other systems need in their place
# is left to the packages that ask for it.
"""

#: Packages that exist for one kind of system only, though those that need them may not say so.
MARKERS = {
    r"(nvidia|cuda)-.*|triton": 'platform_system == "Linux"',
    r"pexpect|ptyprocess": 'sys_platform != "win32"',
    r"hf-xet": 'platform_machine in "x86_64 amd64 AMD64 arm64 aarch64"',
}


def direct_requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for: its dependencies and those of its extras."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for part in lists for text in part]


def needed(name: str, extras: frozenset[str]) -> list[Requirement]:
    """Return what the installed package ``name`` needs here, with these extras."""
    wanted = [Requirement(text) for text in metadata.requires(name) or []]
    places = [default_environment() | {"extra": extra} for extra in extras or {""}]
    return [r for r in wanted if not r.marker or any(r.marker.evaluate(p) for p in places)]


def closure() -> dict[str, str]:
    """Return name -> installed version of all packages that are needed, directly or not."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = direct_requirements()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = metadata.version(key[0])
        waiting += needed(key[0], key[1]) + (needed(key[0], frozenset()) if key[1] else [])
    return found


def line(name: str, version: str) -> str:
    """Return one line of the lock."""
    marker = next((m for pattern, m in MARKERS.items() if re.fullmatch(pattern, name)), "")
    # A local part (2.15.0+cpu) names one builder's file, which others do not have.
    pin = f"{name}=={version.split('+')[0]}"
    return f"{pin} ; {marker}" if marker else pin


def main() -> None:
    """Write the lock beside this file."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("The lock is for Python 3.11: run this with it.")
    lines = [line(name, version) for name, version in sorted(closure().items())]
    (HERE / "lock.txt").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"requirements/lock.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
