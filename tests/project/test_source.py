"""Rules about the source that no linter of ours states."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("broker", "devices", "cli")
MAX_LINES = 600  # "about 500", and a hard stop well before a file has two nouns
TEXT = {".py", ".toml", ".md", ".yaml", ".yml", ".json", ".mjs", ".csv", ".txt", ".in", ""}

FORBIDDEN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.])/(?:root|work|home/\w+|Users/\w+)/\w"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n"),
    "an access token": re.compile(
        r"\b(?:gh[pousr]_\w{36}|github_pat_\w{22}|AKIA[0-9A-Z]{16}|npm_\w{36}|pypi-AgE\w{16})"
    ),
    "the address of a package in a registry": re.compile(r'"resolved": "https?:'),
}


def modules(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts
    )


def project_files() -> Iterator[Path]:
    """What is or would be committed, and is text."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.suffix in TEXT:
            yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_stay_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in modules(*FOLDERS, "tests")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_source_file_begins_with_a_docstring() -> None:
    bare = [relative(path) for path in modules(*FOLDERS, "tests") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert bare == []


def test_what_has_a_length_says_whether_it_is_empty() -> None:
    """mypyc takes a value that may be None and has no ``__bool__`` for true, whatever its length."""
    bare = []
    for path in modules("broker/codec", "broker/core", "broker/store", "broker/transport"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
                if "__len__" in methods and "__bool__" not in methods:
                    bare.append(f"{relative(path)}: {node.name}")
    assert bare == []


def test_each_folder_is_a_typed_package_and_tidings_itself_is_none() -> None:
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file()
        assert (ROOT / folder / "py.typed").read_bytes() == b""
    assert "__init__.py" not in {path.name for path in (ROOT / ".ns" / "tidings").glob("*")}
    tidings = importlib.import_module("tidings")
    assert tidings.__file__ is None


def test_nobody_imports_a_folder_by_its_bare_name() -> None:
    found = []
    for path in modules(*FOLDERS, "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found += [
                f"{relative(path)}:{node.lineno}" for name in names if name.partition(".")[0] in (*FOLDERS, "tests")
            ]
    assert found == []


def test_packages_without_init_do_not_exist() -> None:
    """They would be missing in the wheel without a warning."""
    folders = {path.parent for path in modules(*FOLDERS)}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    "path", [path for path in modules(*FOLDERS) if "\n__all__ = " in path.read_text()], ids=relative
)
def test_public_names_are_those_there_are(path: Path) -> None:
    name = "tidings." + relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    module = importlib.import_module(name)
    names: list[str] = module.__all__
    assert len(names) == len(set(names))
    assert [each for each in names if not hasattr(module, each)] == []
    if path.name == "__init__.py":
        there = {each for each, value in vars(module).items() if not isinstance(value, ModuleType)}
        assert {each for each in there if not each.startswith("_")} == set(names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_can_be_imported_first(folder: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"import tidings.{folder}"], check=True, cwd=ROOT.parent)


def test_no_file_has_secrets_or_paths_of_a_machine() -> None:
    found = []
    for path in project_files():
        text = path.read_text(encoding="utf-8")
        for what, pattern in FORBIDDEN.items():
            found += [f"{relative(path)}: {what}: {match[0]!r}" for match in pattern.finditer(text)]
    assert found == []


def test_the_layers_import_downwards_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
