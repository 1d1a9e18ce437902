"""The pages speak of what is there: links, commands, paths, words and dependencies."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sysvm.api.reasons import Reason
from sysvm.domain import admission_rules, method, policy_status
from sysvm.patching.remote.main import parser
from sysvm.patching.results import JournalPhase

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "decisions").glob("*.md")),
]
PAGES = [*WRITTEN, *sorted((DOCS / "reference").glob("*.md")), ROOT / "hack/lab/README.md"]

LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (?P<text>.+)$", re.MULTILINE)
PATH = re.compile(r"`(?P<path>(?:controller|hack|tests|docs|charts|crds|\.ci)(?:/[\w.*-]+)*/?)`")
MAKE = re.compile(r"\bmake (?P<target>[a-z][a-z-]*)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"`([A-Z][A-Za-z]+)`")
IMPORT_NAMES = {
    "backports-zstd": "backports",
    "prometheus-client": "prometheus_client",
    "python-dateutil": "dateutil",
    "pyyaml": "yaml",
    "typing-extensions": "typing_extensions",
}
LATER_IN_PYTHON = {"compression"}
"""Standard library from 3.14 on, imported only there."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def project() -> dict[str, list[str]]:
    """Group -> names of its dependencies; the operator's own are ``project``."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {"project": content["project"]["dependencies"], **content["dependency-groups"]}
    return {group: [Requirement(line).name for line in lines] for group, lines in groups.items()}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    texts = [match["text"].lower() for match in HEADING.finditer(page.read_text())]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text()):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("https://", "http://")):
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), match["target"]
        assert place.is_relative_to(ROOT), match["target"]
        if anchor:
            assert anchor in anchors(place), match["target"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_named_is_there(page: Path) -> None:
    for match in PATH.finditer(page.read_text()):
        assert list(ROOT.glob(match["path"].rstrip("/"))), match["path"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(CODE.findall(page.read_text()))
    assert {match["target"] for match in MAKE.finditer(code)} <= targets


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_a_page_keeps_to_itself(page: Path) -> None:
    """Nothing of the machine it was written on; short enough to be read."""
    text = page.read_text()
    assert not re.search(r"/work\b|/home/|/root/(?!\.ssh|health_checks|\.cache)|localhost:\d", text)
    assert len(text.splitlines()) <= 160


def test_every_page_can_be_found_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for match in LINK.finditer(page.read_text()):
            place = (page.parent / match["target"].partition("#")[0]).resolve()
            if place.suffix == ".md" and place.is_file() and place.is_relative_to(ROOT):
                waiting.append(place)
    unseen = {name_of(page) for page in PAGES if page not in seen}
    assert unseen <= {"SECURITY.md"}, "only what GitHub shows by itself needs no link"


def test_troubleshooting_answers_every_reason_once() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    quiet = page.partition("\n## Nothing to do\n")[2]
    answered = [word for text in (*rows, quiet) for word in WORD.findall(text)]
    assert sorted(answered) == sorted(reason.value for reason in Reason)


def test_every_reason_is_given_somewhere() -> None:
    sources = [path for path in (ROOT / "controller").rglob("*.py") if path.name != "reasons.py"]
    code = "\n".join(path.read_text() for path in sources)
    never = [reason for reason in Reason if not re.search(rf"Reason\.{reason.name}\b|\"{reason}\"", code)]
    assert not never, "programs would wait for a word that nobody says"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_metric_and_setting_named_is_in_the_code(page: Path) -> None:
    named = set(re.findall(r"\b(?:SYSVM_[A-Z_]+|sysvm_[a-z_]+)\b", page.read_text()))
    sources = [*(ROOT / "controller").rglob("*.py"), *(ROOT / "hack").rglob("*.py"), ROOT / "hack/bootstrap"]
    code = "\n".join(path.read_text() for path in sources)
    for name in named:
        assert f'"{name.removesuffix("_total")}"' in code or f"{name}:-" in code, name


def test_live_patch_tells_every_way_to_use_the_console() -> None:
    page = (DOCS / "live-patch.md").read_text()
    section = page.partition("\n## On the console\n")[2].partition("\n## ")[0]
    options = {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}
    assert set(re.findall(r"--[a-z]+", section)) == options - {"--help", "--root"}


def test_live_patch_names_every_phase_of_the_journal() -> None:
    page = (DOCS / "live-patch.md").read_text()
    table = page.partition("| phase |")[2].partition("\n\n")[0]
    named = {word for line in table.splitlines() if line.startswith("| `") for word in WORD.findall(line.split("|")[1])}
    assert named == {phase.value for phase in JournalPhase}


def test_architecture_counts_the_rules_as_they_are() -> None:
    page = (DOCS / "architecture.md").read_text()
    assert f"{_word(len(method.CHECKERS))} checkers" in page
    assert f"{_word(len(admission_rules.RULES))} rules" in page
    assert f"one table of {_word(len(policy_status.TABLE))} lines" in page


def _word(number: int) -> str:
    words = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    words += "seventeen eighteen nineteen twenty twenty-one twenty-two "
    words += "twenty-three twenty-four twenty-five"
    return words.split()[number]


@pytest.mark.parametrize(
    ("heading", "group"), [("The operator", "project"), ("Development", "dev"), ("Benchmark", "bench")]
)
def test_every_dependency_has_its_line(project: dict[str, list[str]], heading: str, group: str) -> None:
    page = (DOCS / "decisions/dependencies.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == sorted(project[group])


def test_no_group_of_dependencies_is_forgotten(project: dict[str, list[str]]) -> None:
    assert set(project) == {"project", "dev", "bench"}


def test_the_operator_imports_exactly_what_it_declares(project: dict[str, list[str]]) -> None:
    declared = {IMPORT_NAMES.get(name, name) for name in project["project"]}
    assert third_party(ROOT / "controller") == declared


def third_party(folder: Path) -> set[str]:
    """Top-level modules that are neither ours nor Python's."""
    own = {"sysvm", "sysvm_remote"}
    names = {"pydantic" if name == "pydantic_core" else name for name in imported(folder)}  # one is the other's core
    return {name for name in names if name not in sys.stdlib_module_names | LATER_IN_PYTHON | own}


def imported(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]
