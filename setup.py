"""The only computed part of the build: three top-level folders become the namespace package ``tidings``.

A hand-written package list forgets new subpackages without a warning, so the list is found. Type checkers follow
folders, not ``package_dir``, so ``.ns/tidings`` (git-ignored) mirrors the mapping with one symlink per folder.
"""

import os
from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("broker", "devices", "cli")
HERE = Path(__file__).parent

packages = [
    f"tidings.{package}"
    for folder in FOLDERS
    for package in (folder, *(f"{folder}.{inner}" for inner in find_packages(folder)))
]

mirror = HERE / ".ns" / "tidings"
if (HERE / ".git").exists():  # a checkout: sdists and wheels need no mirror
    mirror.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        if not (mirror / folder).is_symlink():
            os.symlink(Path("..", "..", folder), mirror / folder)

setup(
    packages=packages,
    package_dir={f"tidings.{folder}": folder for folder in FOLDERS},
    package_data={"": ["py.typed", "*.yaml", "*.csv"]},
)
