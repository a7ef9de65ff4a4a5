"""The computed part of the build: three top-level folders become the namespace package ``tidings``, and what every
message passes through is compiled to C.

A hand-written package list forgets new subpackages without a warning, so the list is found. Type checkers follow
folders, not ``package_dir``, so ``.ns/tidings`` (git-ignored) mirrors the mapping with one symlink per folder.

``TIDINGS_COMPILE=1`` compiles or fails, ``TIDINGS_COMPILE=0`` leaves everything plain Python. Without it wheels are
compiled where that is possible, and editable installs are not, so that editing a file takes effect.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FOLDERS = ("broker", "devices", "cli")
HERE = Path(__file__).parent.resolve()
MIRROR = HERE / ".ns" / "tidings"

COMPILED = (
    # What every message passes through. The rest waits for the disk, or runs once per connection or command.
    "broker/codec/*.py",
    "broker/core/*.py",
    "broker/store/packs.py",
    "broker/store/rows.py",
    "broker/store/unwritten.py",
    "broker/transport/acceptor.py",
    "broker/transport/link*.py",
    "broker/transport/poller.py",
    "broker/transport/websocket.py",
)
PLAIN = (
    "*/__init__.py",
    # Dataclasses annotated with classes of modules that are not loaded yet: compiled, they crash at import.
    "broker/core/ports.py",
)
# None of pyproject.toml's options: strict checking wants packages that a build does not have.
MYPY = (
    "--config-file=",
    "--no-site-packages",
    "--namespace-packages",
    "--explicit-package-bases",
    "--ignore-missing-imports",
)


class BuildOrGoOn(build_ext):
    """What cannot be compiled stays plain, unless ``TIDINGS_COMPILE=1`` asks for it."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if ASKED == "1":
                raise
            plain(f"the compiler failed: {error}")
            self.extensions = self.distribution.ext_modules = []


def plain(why: str) -> None:
    print(f"tidings: built as plain Python, which is slower: {why}", file=sys.stderr)


def mirror() -> None:
    MIRROR.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        if not (MIRROR / folder).is_symlink():
            os.symlink(Path("..", "..", folder), MIRROR / folder)


def obstacle() -> str:
    """Why nothing can be compiled here, as far as a look can tell; "" if nothing is in the way."""
    if sys.implementation.name != "cpython":
        return "mypyc compiles for CPython only"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.is_file() else f"there is no {header}; Debian has it in python3-dev"


def extensions() -> list[Extension]:
    """One shared library for all, and one small module for each that points into it."""
    from mypyc.build import mypycify

    mirror()
    found = sorted({path for pattern in COMPILED for path in HERE.glob(pattern)})
    names = [path.relative_to(HERE) for path in found if not any(path.match(pattern) for pattern in PLAIN)]
    paths = [f"tidings/{name.as_posix()}" for name in names]
    os.chdir(MIRROR.parent)  # tracebacks name files as they are seen from here
    os.environ["MYPYPATH"] = "."
    try:
        made = HERE / "build" / "mypyc"
        return mypycify([*MYPY, *paths], group_name="tidings.broker.compiled", target_dir=str(made), debug_level="0")
    finally:
        os.chdir(HERE)


def leave_no_binaries() -> None:
    """Editable installs load what an earlier one compiled, whatever has become of the source since."""
    for folder in FOLDERS:
        for path in (HERE / folder).rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            path.unlink()


def find_extensions() -> list[Extension]:
    """What to compile in this call of setup.py, if anything."""
    command = {"bdist_wheel", "editable_wheel"} & set(sys.argv)
    if not command or ASKED == "0":
        return []
    if ASKED == "1":
        return extensions()
    if command == {"editable_wheel"}:
        return []
    try:
        why = obstacle()
        return [] if why else extensions()
    except (Exception, SystemExit) as error:  # mypyc exits
        why = f"mypyc failed: {error}"
        return []
    finally:
        if why:
            plain(why)


ASKED = os.environ.get("TIDINGS_COMPILE", "")

packages = [
    f"tidings.{package}"
    for folder in FOLDERS
    for package in (folder, *(f"{folder}.{inner}" for inner in find_packages(folder)))
]

if (HERE / ".git").exists():  # a checkout
    mirror()
if "editable_wheel" in sys.argv:
    leave_no_binaries()

setup(
    packages=packages,
    package_dir={f"tidings.{folder}": folder for folder in FOLDERS},
    package_data={"": ["py.typed", "*.yaml", "*.csv"]},
    ext_modules=find_extensions(),
    cmdclass={"build_ext": BuildOrGoOn},
)
