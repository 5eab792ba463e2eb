"""What is released: wheel and sdist hold all that an empty folder needs, and say whose work they are made of."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

NOTICES = ("LICENSE", "THIRD_PARTY.md")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree and the wheel that is built from the sdist; no network is needed."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("what is released is what git lists, and this is no clone")
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next((built / "dist").glob("*.whl")))


def _files(folder: Path, *suffixes: str) -> set[str]:
    """Files below a folder of the copied tree, by their path in it."""
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (not suffixes or path.suffix in suffixes)
    }  # fmt: skip


def test_the_wheel_holds_the_package_recipes_trainers_and_notices(built: Path) -> None:
    """Every file of the package, templates and tables too, every recipe, weight and trainer, typed, with notices."""
    names = set(_wheel(built).namelist())
    package = {f"replaygen/{name}" for name in _files(built / "source" / "replaygen")}
    rooms = {
        f"replaygen/_workspace/{room}/{name}"
        for room in ("pipelines", "trainers") for name in _files(built / "source" / room)
    }  # fmt: skip
    notices = {f"replaygen-{PROJECT['version']}.dist-info/licenses/{name}" for name in NOTICES}
    about = {"replaygen/_workspace/cache/README.md", "replaygen/_workspace/cache/.gitignore", "replaygen/py.typed"}
    assert package | rooms | notices | about <= names
    strangers = {name for name in names - package - rooms - about if ".dist-info/" not in name}
    assert strangers == set()


def test_the_sdist_builds_the_wheel_and_holds_what_tests_need(built: Path) -> None:
    """The sdist has tests, docs and notices; nothing that is only of this place."""
    with tarfile.open(next((built / "dist").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "Makefile", *NOTICES}
    wanted |= {"tests/conftest.py", "docs/architecture.md", "pipelines/digits.toml", "trainers/recall.py"}
    assert wanted <= names
    assert not {name for name in names if name.split("/")[0] in (".venv", ".ci", "data", "reports", "dist", "build")}
    assert not {name for name in names if name.startswith("cache/") and name.count("/") > 1}


def test_the_wheel_says_what_it_is(built: Path) -> None:
    """Name, version, licence, Python, extras, and a command."""
    wheel = _wheel(built)
    about = f"replaygen-{PROJECT['version']}.dist-info"
    told = HeaderParser().parsestr(wheel.read(f"{about}/METADATA").decode())
    assert (told["Name"], told["Version"]) == ("replaygen", PROJECT["version"])
    assert told["License-Expression"] == "Apache-2.0"
    assert set(told.get_all("License-File", [])) == set(NOTICES)
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "replaygen = replaygen.cli:main" in wheel.read(f"{about}/entry_points.txt").decode()


def test_everything_but_lama_comes_with_all() -> None:
    """`replaygen[all]` brings each extra that is for use, and lama-cleaner with none."""
    extras = PROJECT["optional-dependencies"]
    brought = set(re.findall(r"[a-z0-9]+", extras["all"][0].partition("[")[2]))
    assert brought == set(extras) - {"all", "demo", "docs", "notebook", "dev"}
    assert "lama" not in str(PROJECT)
    assert set(re.findall(r"[a-z0-9]+", extras["demo"][0].partition("[")[2])) <= brought


def _packages() -> dict[str, set[str]]:
    """Direct dependency -> the extras that bring it; `always` for none."""
    told: dict[str, set[str]] = {}
    for extra, lines in {"always": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for line in lines:
            name = re.match(r"[A-Za-z0-9_.-]+", line)
            assert name is not None
            if name[0] != "replaygen":
                told.setdefault(name[0], set()).add(extra)
    return told


def test_third_party_names_every_dependency_and_its_licence() -> None:
    """THIRD_PARTY.md lists the direct dependencies and no others, with their extras and the licences they declare."""
    text = (REPOSITORY / "THIRD_PARTY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Za-z0-9_.-]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    listed = {
        name: (licence, set(re.findall(r"\w+", extras)))
        for name, licence, extras in rows
        if name not in ("file", "package", "---")
    }
    assert {name: extras for name, (_, extras) in listed.items()} == _packages()
    for name, (licence, _) in listed.items():
        try:
            declared = metadata(name).get("License-Expression")
        except PackageNotFoundError:
            continue
        assert declared in (None, licence), f"{name} is under {declared}, and THIRD_PARTY.md says {licence}"


def test_third_party_names_every_list_that_is_not_ours(repository: Path) -> None:
    """Data files of the package are in THIRD_PARTY.md, so that nobody adds a list of somebody else's in silence."""
    text = (repository / "THIRD_PARTY.md").read_text(encoding="utf-8")
    data = {path.relative_to(repository).as_posix() for path in (repository / "replaygen").rglob("*")
            if path.suffix in (".txt", ".csv", ".json", ".toml", ".npy", ".safetensors")}  # fmt: skip
    assert {name for name in data if name not in text} == set()


def test_the_citation_is_this_version(repository: Path) -> None:
    """CITATION.cff is YAML with the keys that the format wants, and speaks of this version and licence."""
    told = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(told)
    assert (told["version"], told["license"]) == (PROJECT["version"], PROJECT["license"])
    assert told["references"][0]["authors"][0]["family-names"] == "Maracani"


def test_an_empty_folder_and_the_wheel_are_enough(built: Path, tmp_path: Path) -> None:
    """Away from this tree, with the wheel's files alone: init, recipes, a plan with every recipe's trainers found."""
    home = tmp_path / "site"
    _wheel(built).extractall(home)
    folder = tmp_path / "new"
    folder.mkdir()

    def run(*arguments: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(home)!r}); from replaygen.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "replaygen demo" in run("init")
    assert {path.name for path in folder.iterdir()} == {"pipelines", "trainers", "cache"}
    assert str(home) in run("recipes", "ls", "--json")
    run("recipes", "cp", "digits", "mine.toml")
    options = "data.options={ train = 60, val = 12, photos = 24 }"
    assert "to run" in run("plan", "mine", "--set", options)


@pytest.mark.soak
def test_a_fresh_environment_without_extras_says_what_it_lacks(built: Path, tmp_path: Path) -> None:
    """`pip install replaygen[digits]` into a new environment, from a registry: what is not there is named."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    wheel = next((built / "dist").glob("*.whl"))
    pip = [str(home / "bin" / "pip"), "install", "-q", "-c", str(REPOSITORY / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[digits]"], check=True)
    folder = tmp_path / "new"
    folder.mkdir()
    command = str(home / "bin" / "replaygen")
    for words in (["init"], ["recipes", "ls"]):
        subprocess.run([command, *words], cwd=folder, check=True)
    for words, extra in ((["plan", "digits"], "biggan"), (["demo"], "demo")):
        asked = subprocess.run([command, *words], cwd=folder, capture_output=True, text=True)
        assert asked.returncode == 1
        assert f"pip install 'replaygen[{extra}]'" in asked.stderr
