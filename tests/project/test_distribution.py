"""What ``pip install tidings`` brings: the sdist, the wheel made from it, and the wheel in a clean environment."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("broker", "devices", "cli")
BUILT_FROM = (*FOLDERS, "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"tidings-{PROJECT['version']}"


def sources() -> set[str]:
    """Every file below the three folders but what Python and the compiler leave there, as ``broker/codec/wire.py``."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the plain wheel that was built from the sdist."""
    copy = tmp_path_factory.mktemp("source") / "tidings"
    copy.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    environment = {**os.environ, "TIDINGS_COMPILE": "0"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (copy / ".ns").exists(), "only a checkout needs the mirror"
    return copy / "dist"


def test_the_wheel_has_every_source_file_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert names == {f"tidings/{name}" for name in sources()}
    assert {f"tidings/{folder}/py.typed" for folder in FOLDERS} <= names


def test_the_sdist_has_every_source_file_and_no_tests(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        names = {member.name.removeprefix(f"{NAME}/") for member in sdist.getmembers() if member.isfile()}
    made = {name for name in names if name.startswith("tidings.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    about = {"README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml", "setup.py"}
    assert names - made == sources() | about


@pytest.fixture(scope="session")
def compiled_wheel(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one in the folder that TIDINGS_WHEELS names, as .ci/run has it; else made here, which takes minutes."""
    folder = Path(os.environ.get("TIDINGS_WHEELS") or tmp_path_factory.mktemp("wheels"))
    if "TIDINGS_WHEELS" not in os.environ:
        sdist = str(dist / f"{NAME}.tar.gz")
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), sdist]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TIDINGS_COMPILE": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob(f"{NAME}-*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_compiled_wheel_has_every_source_file_too(compiled_wheel: Path) -> None:
    with zipfile.ZipFile(compiled_wheel) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    binaries = {name for name in names if name.endswith(sysconfig.get_config_var("EXT_SUFFIX"))}
    assert names - binaries == {f"tidings/{name}" for name in sources()}
    modules = {name.partition(".")[0] for name in binaries}
    assert {"tidings/broker/core/engine", "tidings/broker/codec/decode", "tidings/broker/transport/link"} <= modules
    assert "tidings/broker/compiled__mypyc" in modules, "beside the modules, not at the top of site-packages"
    assert {name for name in modules if f"{name}.py" not in names} == {"tidings/broker/compiled__mypyc"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["plain Python", "compiled"])
def test_the_wheel_works_in_a_clean_environment(
    form: str, dist: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its dependencies are those of the environment that runs the tests: no network."""
    wheel = request.getfixturevalue("compiled_wheel") if form == "compiled" else dist / f"{NAME}-py3-none-any.whl"
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (site,) = venv.glob("lib/python*/site-packages")
    ours = Path(pytest.__file__).resolve().parents[1]
    (site / "dependencies.pth").write_text(f"{ours}\n")  # a .pth below a .pth, as editable installs have, is not read

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "PYTHON"))}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    imported = "import tidings.broker as b, tidings.devices as d, tidings.cli.main as c; print(b.__file__)"
    assert run(str(python), "-c", imported).startswith(str(site))
    assert run(str(venv / "bin" / "tidings"), "--version") == f"tidings {PROJECT['version']} ({form})\n"
    for command in ("broker", "pub", "sub", "fleet", "demo"):
        assert f"Usage: tidings {command}" in run(str(venv / "bin" / "tidings"), command, "--help")
    embed = "from tidings.broker import BrokerThread, Config\nwith BrokerThread(Config(listeners=[])): print('up')"
    assert run(str(python), "-c", embed) == "up\n"
    fails = """
import traceback
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Pingreq
try:
    encode(Pingreq(), 6)
except ValueError:
    traceback.print_exc(file=__import__("sys").stdout)
"""
    assert 'tidings/broker/codec/encode.py", line ' in run(str(python), "-c", fails)


def test_the_version_stands_in_one_place_and_the_changelog_tells_of_it() -> None:
    assert version("tidings") == PROJECT["version"], "pip install -e . again"
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    elsewhere = [
        name for name in sources() if name.endswith(".py") and f'"{PROJECT["version"]}"' in (ROOT / name).read_text()
    ]
    assert elsewhere == []


def test_data_files_are_readable_as_what_they_are() -> None:
    for name in sources():
        if name.endswith(".csv"):
            with (ROOT / name).open(newline="") as file:
                widths = {len(row) for row in csv.reader(file)}
            assert len(widths) == 1, f"{name}: rows of {sorted(widths)} cells"
