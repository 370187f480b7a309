"""The project keeps its own rules: what is exported, locked, said in documents, and what must never be said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import littlebigcluster
from littlebigcluster import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "littlebigcluster"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 400


def repository_files() -> list[Path]:
    """What is, or could be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone: the source distribution
        made = re.compile(r"(^|/)(\.git|\.venv[^/]*|\.servers|\.[a-z_]+_cache|\.hypothesis|__pycache__|dist)/")
        names = (file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*"))
        listed = [name for name in names if not made.search(name)]
    return sorted(file for name in listed if name and (file := ROOT / name).is_file())


def module_names() -> list[str]:
    """Every module of the package, packages by their own name."""
    files = (file.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("*.py") if file.stem != "__main__")
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


def package_names() -> list[str]:
    return sorted(".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in PACKAGE.rglob("__init__.py"))


# What is public


@pytest.mark.parametrize("name", package_names())
def test_a_package_exports_what_it_holds_and_nothing_else(name: str) -> None:
    package = import_module(name)
    held = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, ModuleType) and key != "annotations"
    }
    exported = getattr(package, "__all__", [])
    assert len(exported) == len(set(exported))
    assert {key for key in exported if not key.startswith("__")} == held
    for key in exported:
        assert hasattr(package, key), f"{name}.__all__ names {key}, which does not exist"


def test_every_directory_with_modules_is_a_package() -> None:
    directories = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [str(found) for found in sorted(directories) if not (found / "__init__.py").exists()] == []


def error_classes() -> set[str]:
    classes = (value for value in vars(errors).values() if isinstance(value, type))
    return {found.__name__ for found in classes if issubclass(found, errors.LbcError)}


def test_every_error_is_public() -> None:
    assert error_classes() - set(littlebigcluster.__all__) == set()


def test_the_error_tree_is_drawn_whole() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"^    (?:[├└]── )?(\w+)", errors.__doc__, re.MULTILINE))
    assert drawn == error_classes()


def test_every_module_imports_on_its_own() -> None:
    """In a fresh interpreter each, as far as this package is concerned: so that no import order is needed. What
    `import littlebigcluster` brings is there before, whatever is imported of it."""
    program = """
import importlib, sys, traceback
import littlebigcluster
before, failed = set(sys.modules), False
for name in sys.argv[1:]:
    for loaded in [key for key in sys.modules if key.split(".")[0] == "littlebigcluster" and key not in before]:
        parent, _, child = loaded.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException:
        failed = True
        print(name, traceback.format_exc(limit=-2), sep="\\n")
sys.exit(failed)
"""
    command = [sys.executable, "-W", "error", "-c", program, *module_names()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Versions


def test_all_places_name_the_same_version() -> None:
    version = PYPROJECT["project"]["version"]
    assert littlebigcluster.__version__ == version
    assert metadata.version("littlebigcluster") == version, "the environment is stale: run make setup"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE)


def supported_versions() -> list[str]:
    prefix = "Programming Language :: Python :: 3."
    classifiers = PYPROJECT["project"]["classifiers"]
    return [found.rpartition(" ")[2] for found in classifiers if found.startswith(prefix)]


def test_tests_run_on_every_version_that_is_claimed() -> None:
    script = (ROOT / "tools" / "pythons.sh").read_text()
    assert f'supported="{" ".join(supported_versions())}"' in script
    assert PYPROJECT["project"]["requires-python"] == f">={supported_versions()[0]}"


# The lock (docs/adr/0001)


def locked(name: str) -> dict[str, list[Requirement]]:
    """The requirements of a lock file by project, each with `==` and at least one hash."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found: dict[str, list[Requirement]] = defaultdict(list)
    for entry in text.replace("\\\n", "").splitlines():
        pinned, *hashes = entry.split(" --hash=")
        requirement = Requirement(pinned)
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), entry
        assert hashes, entry
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", digest) for digest in hashes), entry
        assert requirement.url is None, entry
        found[canonicalize_name(requirement.name)].append(requirement)
    return found


def applies(requirement: Requirement, version: str) -> bool:
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def direct_requirements(lock: str) -> list[str]:
    if lock == "bootstrap":
        return ["uv"]
    runtime = PYPROJECT["project"]["dependencies"]
    return runtime + (PYPROJECT["dependency-groups"]["dev"] if lock == "dev" else [])


@pytest.mark.parametrize("version", supported_versions())
@pytest.mark.parametrize("lock", ["runtime", "dev", "bootstrap"])
def test_lock_follows_pyproject(lock: str, version: str) -> None:
    pins = locked(lock)
    for text in direct_requirements(lock):
        wanted = Requirement(text)
        if not applies(wanted, version):
            continue
        fitting = [pin for pin in pins[canonicalize_name(wanted.name)] if applies(pin, version)]
        assert len(fitting) == 1, f"{wanted} has {len(fitting)} pins on {version}: run make lock"
        (exact,) = fitting[0].specifier
        assert wanted.specifier.contains(exact.version, prereleases=True), f"{fitting[0]}, {wanted}: run make lock"


@pytest.mark.parametrize("version", supported_versions())
def test_lock_holds_what_the_locked_distributions_need_in_turn(version: str) -> None:
    """As far as this environment can tell: only what is installed here says what it needs."""
    pins = {name: [pin for pin in found if applies(pin, version)] for name, found in locked("dev").items()}
    for name, found in pins.items():
        for distribution in metadata.distributions(name=name) if found else ():
            for text in distribution.requires or ():
                needed = Requirement(text)
                if "extra" not in str(needed.marker) and applies(needed, version):
                    assert pins.get(canonicalize_name(needed.name)), f"{name} needs {needed}: run make lock"


def test_users_and_developers_get_the_same_versions() -> None:
    developers = {(name, str(pin.specifier)) for name, found in locked("dev").items() for pin in found}
    users = {(name, str(pin.specifier)) for name, found in locked("runtime").items() for pin in found}
    assert users - developers == set()


# What must not be in the repository

REGISTRIES = ["pypi|org", "pythonhosted|org", "npmjs|org", "npmjs|com", "yarnpkg|com", "crates|io", "rubygems|org"]
MACHINE = ["/work/|main", "/work/|shared", "/opt/|pypi", "/root/|.", "../|shared/", "CONVENTIONS|.md"]
FORBIDDEN = [name.replace("|", ".") for name in REGISTRIES] + [path.replace("|", "") for path in MACHINE]


@pytest.mark.parametrize("word", FORBIDDEN)
def test_repository_does_not_name_registries_or_one_machine(word: str) -> None:
    needle = word.encode()
    assert [str(file.relative_to(ROOT)) for file in repository_files() if needle in file.read_bytes()] == []


def test_repository_has_no_lock_that_names_download_addresses() -> None:
    names = {file.name for file in repository_files()}
    assert names & {"uv.lock", "poetry.lock", "pdm.lock", "package-lock.json", "yarn.lock"} == set()


def test_a_file_tells_one_story() -> None:
    lengths = {str(file.relative_to(ROOT)): file.read_text().count("\n") for file in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


# Documents


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as the usual forges make them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"\]\([^)]*\)", "", found) for found in re.findall(r"^#+ +(.+)$", prose, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", found.strip().lower()).replace(" ", "-") for found in headings}


def broken_links(document: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"^\[[^\]]+\]: +(\S+)", prose, re.MULTILINE)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize(
    "document", [str(file.relative_to(ROOT)) for file in repository_files() if file.suffix == ".md"]
)
def test_links_between_documents_resolve(document: str) -> None:
    assert broken_links(ROOT / document) == []


# Finding interpreters


def pythons(*arguments: str, path: Path, home: Path) -> list[str]:
    environment = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(home)}
    command = ["sh", str(ROOT / "tools" / "pythons.sh"), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_interpreters_are_found_behind_a_broken_shim(tmp_path: Path) -> None:
    here = "{}.{}".format(*sys.version_info)
    broken, selected = tmp_path / "shims", tmp_path / ".pyenv" / "versions" / "any" / "bin"
    for directory in (broken, selected):
        directory.mkdir(parents=True)
    for version in supported_versions():
        shim = broken / f"python{version}"
        shim.write_text("#!/bin/sh\necho not selected >&2\nexit 127\n")
        shim.chmod(0o755)
    before = pythons(path=broken, home=tmp_path)
    (selected / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    found = pythons(path=broken, home=tmp_path)
    assert found == sorted({*before, here}, key=lambda version: int(version.partition(".")[2]))
    for version in found:
        (interpreter,) = pythons(version, path=broken, home=tmp_path)
        assert Path(interpreter).parent != broken
