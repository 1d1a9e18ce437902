"""The operator's process in the lab: the chart's settings, one record, an end by request or by force."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from lab.controlplane import Unavailable
from lab.operator import OperatorProcess

PROGRAM = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}), flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    environment = tmp_path / "venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to(sys.executable)
    (environment / "sysvm-operator").write_text(PROGRAM)
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    return environment / "sysvm-operator"


def lines(process: OperatorProcess, count: int) -> list[str]:
    deadline = time.monotonic() + 10
    while len(found := process.log.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_it_runs_with_the_given_settings_and_identity_and_no_others(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSVM_WORKERS", "99")
    process = OperatorProcess.start(tmp_path / "run", tmp_path / "kubeconfig", {"SYSVM_NAMESPACE": "cloud"})
    try:
        said = json.loads(lines(process, 1)[0])
        assert said["arguments"] == ["run"]
        assert said["environment"]["SYSVM_NAMESPACE"] == "cloud"
        assert said["environment"]["KUBECONFIG"] == str(tmp_path / "kubeconfig")
        assert "SYSVM_WORKERS" not in said["environment"]
        assert OperatorProcess.attach(tmp_path / "run") == process
    finally:
        process.kill()
    assert not process.alive()
    assert OperatorProcess.attach(tmp_path / "run") is None


def test_stop_asks_first(program: Path, tmp_path: Path) -> None:
    process = OperatorProcess.start(tmp_path / "run", tmp_path / "kubeconfig", {})
    lines(process, 1)
    assert process.stop()
    assert lines(process, 2)[-1] == "asked to end"


def test_its_lives_share_one_log(program: Path, tmp_path: Path) -> None:
    for life in (1, 2):
        process = OperatorProcess.start(tmp_path / "run", tmp_path / "kubeconfig", {})
        lines(process, life)
        process.kill()


def test_a_project_that_is_not_installed_is_said(tmp_path: Path, program: Path) -> None:
    program.unlink()
    with pytest.raises(Unavailable, match="uv sync"):
        OperatorProcess.start(tmp_path / "run", tmp_path / "kubeconfig", {})
