"""What the pages tell people to type does what they say, and one line fits the next."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.domain.test_bundled_images import TEXT

from sysvm.operator.main import main

ROOT = Path(__file__).resolve().parents[3]
TYPED = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    *sorted((ROOT / "charts").glob("*/README.md")),
    *sorted((ROOT / "charts").glob("*/templates/NOTES.txt")),
    *sorted((ROOT / "hack").rglob("*.md")),
]
IMAGE = "REGISTRY/sysvm-operator:0.1.0"
VERBS = "annotate|delete|describe|edit|explain|get|label|patch|wait"


def lines_of(page: str) -> list[str]:
    return (ROOT / page).read_text().replace("\\\n", " ").splitlines()


def test_the_image_that_is_built_is_the_one_that_is_pushed_and_installed() -> None:
    typed = [
        line for line in lines_of("docs/install.md") if line.startswith(("make image", "docker push", "helm install"))
    ]
    assert [line.split()[:2] for line in typed] == [["make", "image"], ["docker", "push"], ["helm", "install"]]
    built, pushed, installed = (shlex.split(line) for line in typed)
    assert built[2] == f"IMAGE={IMAGE}"
    assert pushed[2] == IMAGE
    given = dict(word.split("=", 1) for word in installed if word.startswith("image."))
    assert f"{given['image.repository']}:{given['image.tag']}" == IMAGE
    assert "docker build -t $(IMAGE) ." in (ROOT / "Makefile").read_text()


def test_a_chart_without_a_tag_asks_for_the_image_that_the_page_builds() -> None:
    version = re.search(r"^appVersion: (\S+)$", (ROOT / "charts/sysvm-operator/Chart.yaml").read_text(), re.MULTILINE)
    assert version is not None
    assert IMAGE.endswith(f":{version[1]}")


def image_runs() -> list[tuple[str, list[str]]]:
    """Where the image, or the program in its Pod, is run, and the words after it."""
    found = []
    for page in TYPED:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            match = re.search(
                rf"docker run [^`]*?{re.escape(IMAGE)} (?P<words>[^`<]*)|-- sysvm-operator (?P<there>[^`<]*)", line
            )
            if match is not None:
                found.append((page.name, shlex.split(match["words"] or match["there"])))
    return found


def test_the_words_after_the_image_are_the_programs() -> None:
    """The image's entrypoint is the program, so its name is not said once more; metadata.ini comes on stdin."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    entrypoint = re.search(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    assert entrypoint is not None
    assert json.loads(entrypoint[1]) == ["sysvm-operator"]
    runs = image_runs()
    assert len(runs) == 2
    for page, words in runs:
        done = CliRunner().invoke(main, words, input=TEXT)
        assert done.exit_code == 0, (page, words, done.output)
        assert "kind: SystemVMTemplate" in done.output


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(ROOT)))
def test_rollouts_are_asked_for_by_a_name_that_no_other_product_has(page: Path) -> None:
    """`kubectl get rollouts` asks Argo Rollouts, where that is installed and comes first."""
    typed = page.read_text().replace("\\\n", " ")
    ambiguous = rf"kubectl (?:-\S+ +\S+ +)*(?:{VERBS}) (?:-\S+ +)*(?:\S*,)?rollouts?(?:[ ,/`]|$)"
    assert re.findall(ambiguous, typed, re.MULTILINE) == []
