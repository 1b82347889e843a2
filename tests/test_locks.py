"""The locks hold all that pyproject.toml asks for, with hashes, and `make test` runs on nothing else."""

from __future__ import annotations

import os
import re
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, cast

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
NAMES = ("demo.txt", "lock.txt", "test.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
)
# torch's build is chosen apart (Makefile), the package is the work tree, pip comes with Python.
APART = {"torch", "otter-gguf", "pip"}


def project() -> dict[str, Any]:
    """pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    parsed: dict[str, Any] = tomllib.loads(text)
    return parsed


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock, each with its hashes."""
    text = (LOCKS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        found.append((Requirement(requirement), hashes))
    return found


def pins(name: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Version by package, where a lock is installed; here, if no environment is given."""
    chosen: dict[str, str] = {}
    markers = cast("dict[str, str]", environment or default_environment())
    for requirement, _ in entries(name):
        if requirement.marker is None or requirement.marker.evaluate(markers):
            package = canonicalize_name(requirement.name)
            assert package not in chosen, f"{name}: {package} twice"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            chosen[package] = specifier.version
    return chosen


def environments() -> list[dict[str, str]]:
    """The markers of all that the project runs on."""
    here = {key: str(value) for key, value in default_environment().items()}
    return [
        here | platform | {"python_version": python, "python_full_version": f"{python}.0"}
        for python in PYTHONS
        for platform in PLATFORMS
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_hashes_and_no_address(name: str) -> None:
    assert "://" not in (LOCKS / name).read_text(encoding="utf-8")
    for requirement, hashes in entries(name):
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def required(wanted: list[str], extras: dict[str, list[str]]) -> list[Requirement]:
    """Requirements, with the package's own extras resolved."""
    found = []
    for requirement in map(Requirement, wanted):
        if canonicalize_name(requirement.name) == "otter-gguf":
            found += [each for extra in sorted(requirement.extras) for each in required(extras[extra], extras)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize(
    ("name", "extra", "groups"),
    [("test.txt", "test", ["build", "lint"]), ("demo.txt", "plot", ["build"]), ("lock.txt", None, ["lock"])],
)
def test_a_lock_holds_what_the_project_asks_for(name: str, extra: str | None, groups: list[str]) -> None:
    """Red where somebody changed pyproject.toml and did not run `make lock`."""
    parsed = project()
    extras = parsed["project"]["optional-dependencies"]
    wanted = required([*parsed["project"]["dependencies"], *(extras[extra] if extra else [])], extras)
    wanted += [Requirement(each) for group in groups for each in parsed["dependency-groups"][group]]
    for environment in environments():
        locked = pins(name, environment)
        for requirement in wanted:
            package = canonicalize_name(requirement.name)
            if package not in APART:
                assert locked.get(package) is not None, (requirement, environment)
                assert requirement.specifier.contains(locked[package]), (requirement, locked[package])


def test_demo_and_test_agree() -> None:
    for environment in environments():
        locked = pins("test.txt", environment)
        assert pins("demo.txt", environment).items() <= locked.items()
        assert not APART & locked.keys()


def test_the_build_group_repeats_the_build_requirements() -> None:
    parsed = project()
    build = {each for each in parsed["build-system"]["requires"] if not each.startswith("pip")}
    assert build <= set(parsed["dependency-groups"]["build"])


def problems(installed: dict[str, str], locked: dict[str, str], torch: set[str]) -> list[str]:
    """What is installed otherwise than locked; torch brings along what its own build pins."""
    unlocked = installed.keys() - locked.keys() - torch - APART
    other = [name for name, version in locked.items() if installed.get(name) != version]
    lines = [f"{name} {installed[name]}, not locked" for name in unlocked]
    return sorted([*lines, *(f"{name} {installed.get(name)}, locked {locked[name]}" for name in other)])


def requirements_of(name: str, installed: dict[str, Distribution]) -> set[str]:
    """What a distribution requires, directly and by others, without extras."""
    found: set[str] = set()
    pending = [name]
    while pending:
        for text in installed[pending.pop()].requires or ():
            requirement = Requirement(text)
            package = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and package in installed and package not in found:
                found.add(package)
                pending.append(package)
    return found


@pytest.mark.skipif("OTTER_LOCK" not in os.environ, reason="not started by make test, which installs from the lock")
def test_installed_is_what_is_locked() -> None:
    """The environment of `make test` holds the locked versions and nothing else."""
    found = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    installed = {str(name): each.version for name, each in found.items()}
    torch = requirements_of("torch", {str(name): each for name, each in found.items()})
    assert not problems(installed, pins(Path(os.environ["OTTER_LOCK"]).name), torch)


def test_another_package_or_version_is_noticed() -> None:
    locked = {"numpy": "2.0.0", "tqdm": "4.70.1"}
    assert not problems({**locked, "torch": "2.13.0", "triton": "3.0.0"}, locked, {"triton"})
    assert problems({**locked, "triton": "3.0.0"}, locked, set()) == ["triton 3.0.0, not locked"]
    assert problems({**locked, "numpy": "2.1.0"}, locked, set()) == ["numpy 2.1.0, locked 2.0.0"]
    assert problems({"numpy": "2.0.0"}, locked, set()) == ["tqdm None, locked 4.70.1"]
