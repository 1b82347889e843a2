"""The files around the code hold: workflows, links and paths in the guides, the version, the citation, the glossary."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import otter_gguf
from tests.refusals import assert_names

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
GUIDES = (
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "RELEASE.md",
    "SECURITY.md",
    "docs/building.md",
    "docs/bump-llama-cpp.md",
    ".github/pull_request_template.md",
)
WITH_PATHS = ("CONTRIBUTING.md", "RELEASE.md", "docs/building.md", "docs/bump-llama-cpp.md")
MADE_BY_USE = ("build/", ".venv", "dist/", "otter_gguf/converters/llama_cpp/")
"""What set-up and builds make: in no fresh clone."""
OF_LLAMA_CPP = ("common/", "conversion/", "ggml/", "gguf-py/", "include/", "src/", "tools/", "vendor/")
NOT_UNPACKED = ("tools/", "vendor/")
"""Folders of the source distribution that the build leaves in the archive."""
PLACEHOLDER = re.compile(r"NAME|VERB|MODEL_TYPE|DIR|FILE")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """A Markdown text without its fenced blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def targets() -> set[str]:
    """What the Makefile can make."""
    return {
        name
        for line in re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", read("Makefile"), re.MULTILINE)
        for name in line.split()
    }


def asked_targets(text: str) -> set[str]:
    """The targets that a text asks make for; ``make`` with nothing behind it asks for none."""
    commands = re.findall(r"(?:^|[`\s])make((?: +[^\s`&|;]+)+)", text)
    words = (word for command in commands for word in command.split())
    return {word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)}


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def workflow_named(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(read(f".github/workflows/{name}.yml"))
    return found


# ---- workflows -----------------------------------------------------------------------------------------------------


def test_all_workflows_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["canary", "docs", "qa", "test", "wheels"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_asks_only_for_targets_of_the_makefile(path: Path) -> None:
    commands = "\n".join(
        step["run"] for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))) if "run" in step
    )
    assert asked_targets(commands) <= targets() - {"clean", "distclean"}


def test_an_unknown_target_would_be_noticed() -> None:
    assert targets() >= {"check", "test", "qa", "lint", "lock"}
    assert asked_targets("make --keep-going qa CLANG=clang-18\nmake nonsense\n  make test PYTEST=tests/native") == {
        "qa",
        "nonsense",
        "test",
    }
    assert "nonsense" not in targets()


@pytest.mark.parametrize(
    ("workflow", "wanted"),
    [
        ("test", {"lint", "test"}),
        ("docs", {"test"}),
        ("qa", {"qa"}),
        ("canary", {"test", "test-latest", "test-lowest"}),
    ],
)
def test_every_tier_runs_somewhere(workflow: str, wanted: set[str]) -> None:
    commands = "\n".join(step.get("run", "") for step in steps(workflow_named(workflow)))
    assert asked_targets(commands) == wanted


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_least_rights_a_time_limit_and_pinned_actions(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] < 360, name
        writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert writes <= ({"id-token"} if (path.stem, name) == ("wheels", "publish") else set()), name
    for step in steps(workflow):
        assert re.search(r"@(release/)?v\d", step.get("uses", "@v0")), step["uses"]
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


def test_only_a_tag_publishes_and_only_with_approval() -> None:
    publish = workflow_named("wheels")["jobs"]["publish"]
    assert "refs/tags/v" in publish["if"]
    assert publish["environment"] == "release"
    assert set(publish["needs"]) == {"wheels", "sdist"}


def test_every_supported_python_is_tested() -> None:
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    jobs = workflow_named("test")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported == jobs["windows"]["strategy"]["matrix"]["python"]
    wheels = next(
        step["env"]["CIBW_BUILD"] for step in steps(workflow_named("wheels")) if "CIBW_BUILD" in step.get("env", {})
    )
    assert wheels.split() == [f"cp{python.replace('.', '')}-*" for python in supported]


def test_windows_installs_the_torch_that_the_makefile_names() -> None:
    (command,) = (step["run"] for step in steps(workflow_named("test")) if "Makefile" in step.get("run", ""))
    assert "s/^TORCH *?= *//p" in command
    assert re.search(r"^TORCH *\?= *torch==\d", read("Makefile"), re.MULTILINE)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(names) == len(set(names)) > 1


def test_hooks_run_the_locked_tools() -> None:
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0] for hook in hooks if hook["entry"].startswith(".venv")}
    assert tools == {".venv/bin/ruff", ".venv/bin/clang-format", ".venv/bin/mypy"}
    for tool in tools:
        assert f"\n{Path(tool).name}==" in read("locks/test.txt")


# ---- links and paths -----------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if re.match(r"https://|\.\./\.\./(issues|security)", link):
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", GUIDES)
def test_every_link_leads_somewhere(name: str) -> None:
    assert broken_links(ROOT / name) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, with marks\n[a](page.md#a-heading-with-marks) [b](#none) [c](gone.md) [d](https://e.org)\n"
    )
    assert broken_links(page) == ["#none", "gone.md"]


def code_of(text: str) -> str:
    """The code in a Markdown text: fenced and indented blocks, and what is between backticks."""
    prose = without_code(text)
    indented = re.findall(r"^ {4}\S.*$", prose, re.MULTILINE)
    return "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`]+)`", prose), *indented])


def named_paths(text: str) -> set[str]:
    """Files, and folders with a slash at the end or in tests/, that a text names in its code; no placeholders."""
    words = re.split(r"[\s\"'=,;()`]+", code_of(text))
    paths = {
        word
        for word in words
        if re.fullmatch(r"\.?\w[\w.-]*/([\w.-]+/)*[\w.-]*", word) and not PLACEHOLDER.search(word)
    }
    return {path for path in paths if path.endswith("/") or "." in path.rpartition("/")[2] or path.startswith("tests/")}


def llama_cpp() -> Path | None:
    """The pinned llama.cpp's sources, if a build has left them in the cache."""
    spec = importlib.util.spec_from_file_location("fetch_llama_cpp", ROOT / "cmake" / "fetch_llama_cpp.py")
    assert spec is not None
    assert spec.loader is not None
    helper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helper)
    pin = dict(
        re.findall(r'^set\(OTTER_LLAMA_CPP_(SDIST|SHA256) "(.*?)"\)', read("cmake/FetchLlamaCpp.cmake"), re.MULTILINE)
    )
    tree: Path = helper.cache_dir() / f"llama.cpp-{pin['SDIST']}-{pin['SHA256'][:12]}"
    return tree if tree.is_dir() else None


@pytest.mark.parametrize("name", WITH_PATHS)
def test_every_path_exists(name: str) -> None:
    paths = {path for path in named_paths(read(name)) if not path.startswith((*MADE_BY_USE, *OF_LLAMA_CPP))}
    assert paths
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_every_path_of_llama_cpp_exists() -> None:
    paths = {path for path in named_paths(read("docs/bump-llama-cpp.md")) if path.startswith(OF_LLAMA_CPP)}
    assert len(paths) > 30
    tree = llama_cpp()
    if tree is None:
        pytest.skip("built without the cache of llama.cpp's sources")
    assert sorted(path for path in paths if not path.startswith(NOT_UNPACKED) and not (tree / path).exists()) == []


def test_a_missing_path_would_be_noticed() -> None:
    text = (
        "`otter_gguf/gone.py`, `csrc/gone/`, `pytest tests/gone`; not `a/b`, `x@y/z.py`, `csrc/NAME.h` or docs/gone.md"
    )
    assert named_paths(text) == {"otter_gguf/gone.py", "csrc/gone/", "tests/gone"}


@pytest.mark.parametrize("name", GUIDES)
def test_every_target_in_a_guide_exists(name: str) -> None:
    assert asked_targets(code_of(read(name))) <= targets()


def test_the_bridge_page_names_every_private_header() -> None:
    """A header that the bridge begins to include belongs on the list of what a new version is compared by."""
    page = read("docs/bump-llama-cpp.md")
    included = {
        header
        for source in (ROOT / "csrc" / "bridge").iterdir()
        for header in re.findall(
            r'^#include "((?:llama|ggml-impl|ggml-cpu/|models/)[\w./-]*\.h)"',
            source.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert included >= {"llama-graph.h", "llama-model.h", "models/models.h"}
    missing = sorted(header for header in included if f"/{header}`" not in page)
    assert missing == []


# ---- version, citation, changelog, glossary ------------------------------------------------------------------------


def test_there_is_one_version() -> None:
    assert version("otter-gguf") == otter_gguf.__version__, (
        "the installed package is older than the version: install it again"
    )
    assert "\nversion = " not in read("pyproject.toml").partition("[project.optional-dependencies]")[0]
    assert yaml.safe_load(read("CITATION.cff")).get("version", otter_gguf.__version__) == otter_gguf.__version__


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"]
    assert citation["license"] == "MIT"
    (paper,) = citation["references"]
    assert paper["title"].startswith("Predicting Rewards Alongside Tokens")
    assert len(paper["authors"]) == 7
    assert_names(paper["url"], "2408.10764")


def test_the_changelog_keeps_its_form() -> None:
    text = read("CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    groups = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def glossary(text: str) -> list[str]:
    """The terms of the table below the heading, in order."""
    section = text.partition("\n## Glossary\n")[2].partition("\n## ")[0]
    return [term.strip().lower() for term in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)][1:]


def test_a_term_has_one_entry() -> None:
    terms = glossary(read("CONTRIBUTING.md"))
    assert len(terms) > 30
    assert {term for term in terms if terms.count(term) > 1} == set()
    assert glossary("\n## Glossary\n\n| term | meaning |\n|---|---|\n| a | b |\n| A | c |\n\n## x\n") == ["a", "a"]
