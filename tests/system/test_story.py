"""The demo is a test: what a newcomer sees is what holds, on real system VMs, with the chart's identity."""

from pathlib import Path

import pytest

from lab import DEFAULT_FLEET, Lab, demo, preflight
from lab.cli import take_down

pytestmark = pytest.mark.systemvm


@pytest.mark.timeout(600)
def test_the_demo_patches_rolls_back_and_mends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    missing = preflight.missing()
    if missing:
        pytest.skip(missing)
    run_dir = tmp_path / "lab"
    told: list[str] = []
    lab = Lab(run_dir, say=told.append)
    story = demo.Story(run_dir, DEFAULT_FLEET, told.append, told.append)
    try:
        story.tell()
    finally:
        removed = take_down(lab)
    text = "\n".join(told)
    first, broken, mended = story.acts
    everybody = {"r-101-VM", "r-102-VM", "r-103-VM", "s-104-VM"}
    for act in (first, mended):
        assert {row[0] for row in act.rows} == everybody
        assert {row[1] for row in act.rows} == {"Succeeded"}
        assert sorted(act.roles.values()) == ["BACKUP", "PRIMARY"]
        pair = [row[0] for row in act.rows if row[0] in act.roles]
        assert [act.roles[name] for name in pair] == ["BACKUP", "PRIMARY"], "BACKUP goes first"
    assert [row[1] for row in broken.rows] == ["RolledBack"]
    stalled = text[text.index("The policy is Stalled") :]
    assert broken.rows[0][0] in stalled
    assert "apache2" in stalled
    assert "Services" in stalled, "the step is named"
    assert "all the same, and no service has failed" in text
    assert "the operator" in removed
    assert not run_dir.exists()
