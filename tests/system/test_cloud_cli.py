"""`python -m lab up --cloud`, as a person uses it: twelve VMs, keys and faults of their cloud, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import paths, preflight

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
    pytest.mark.timeout(500),
]


def lab(folder: Path, *words: str, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "--dir", str(folder), *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stdout + (done.stderr if fails else "")


def contract(url: str) -> str:
    """The part that reads, with the keys of all roles."""
    keys = {
        f"CLOUDSTACK{role}_{part}": f"{user}-{part.lower()}"
        for role, user in (("", "admin"), ("_READONLY", "auditor"), ("_USER", "tenant"))
        for part in ("KEY", "SECRET")
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"],
        check=False,
        cwd=paths.REPOSITORY,
        env=environment | keys | {"CLOUDSTACK_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_whole_cloud_comes_up_keeps_the_contract_lies_when_told_and_goes(tmp_path: Path) -> None:
    run_dir = tmp_path / "lab"
    try:
        assert lab(run_dir, "up", "--cloud", "--no-control-plane").count(" running ") == 12
        shown = lab(run_dir, "cloud")
        url = shown.split("stand-in): ")[1].split()[0]
        assert shown.count("hypervisor host kvm-") == 3
        assert " passed" in contract(url)
        assert lab(run_dir, "cloud", "faults", "patch=nothing").strip() == "{}"
        assert "no fault 'sunspots'" in lab(run_dir, "cloud", "faults", "sunspots=1", fails=True)
        assert '"version": "4.20.2.0"' in lab(run_dir, "cloud", "upgrade", "release=new")
    finally:
        down = lab(run_dir, "down")
    assert "12 VMs" in down
    assert not run_dir.exists()
    assert "no management server" in lab(run_dir, "cloud", fails=True)
