"""The corpus of `make fuzz`, replayed: seeds that reach far, and every input that once broke a promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.promises import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}"[:60])
def test_the_promises_hold(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_seeds_that_are_accepted_and_the_corpus_stays_small() -> None:
    for name, target in TARGETS.items():
        assert any(target(path.read_bytes()) for path in INPUTS if path.parent.name == name), name
    assert sum(path.stat().st_size for path in INPUTS) < 512 << 10
