"""What the lab does to its host, it does once, openly, and undoes: limits, state, roots, and the first sentence."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import LabUnavailable, SystemVMType, VMSpec, preflight
from lab.cli import main
from lab.images import Images, Recipe
from lab.limits import InotifyLimits
from lab.state import LabState, MachineRecord, Phase

RECIPE = Recipe(name="tiny", suite="bookworm", packages=("none",))


@pytest.fixture
def inotify(tmp_path: Path) -> Path:
    folder = tmp_path / "inotify"
    folder.mkdir()
    (folder / "max_user_instances").write_text("128")
    (folder / "max_user_watches").write_text("9999999")
    return folder


def test_the_last_lab_puts_the_limits_back(tmp_path: Path, inotify: Path) -> None:
    limits = InotifyLimits(tmp_path, alive=lambda _: True, limits=inotify)
    limits.hold("one")
    limits.hold("one")
    limits.hold("two")
    assert int((inotify / "max_user_instances").read_text()) > 1000
    assert (inotify / "max_user_watches").read_text() == "9999999"
    assert not limits.release("one")
    assert int((inotify / "max_user_instances").read_text()) > 1000
    assert limits.release("two")
    assert (inotify / "max_user_instances").read_text() == "128"
    assert not list(tmp_path.glob("inotify.*"))


def test_a_lab_that_died_does_not_keep_the_limits_raised(tmp_path: Path, inotify: Path) -> None:
    limits = InotifyLimits(tmp_path, alive=lambda lab: lab != "dead", limits=inotify)
    limits.hold("dead")
    limits.hold("mine")
    assert limits.release("mine")
    assert (inotify / "max_user_instances").read_text() == "128"


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec = VMSpec(name="r-9-VM", type=SystemVMType.ROUTER, index=9, group="g", redundant=True, tmpfs_mib=64)
    state = LabState(phase=Phase.UP, toolbox_pid=7, slot=3, networks={"g": 1})
    state.machines["r-9-VM"] = MachineRecord(spec, 1, "old", "ssh-ed25519 AAAA")
    state.save(tmp_path / "state.json")
    assert LabState.load(tmp_path / "state.json") == state
    assert LabState.load(tmp_path / "missing.json") is None


@pytest.mark.parametrize(
    ("system", "user", "words"),
    [("Darwin", 0, "run the lab in a Linux VM"), ("Linux", 1000, "need root")],
)
def test_a_machine_that_cannot_run_the_lab_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, system: str, user: int, words: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    sentence = preflight.missing()
    assert sentence is not None
    assert words in sentence
    assert "\n" not in sentence


class Builder:
    """Stands in for mmdebstrap: a program on PATH that makes the folder it was told to, or fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program = folder / "bin/mmdebstrap"
        self.program.parent.mkdir()
        self.said: list[str] = []
        self.images = Images(folder / "cache", say=self.said.append)
        monkeypatch.setenv("PATH", f"{self.program.parent}:{os.environ['PATH']}")
        run = subprocess.run

        def without_mounts(argv: list[str], **options: object) -> object:
            # The namespace of its own needs root and is none of this test's business.
            return run([word for word in argv if str(word) not in _UNSHARE], **options)  # type: ignore[call-overload]

        monkeypatch.setattr(subprocess, "run", without_mounts)

    def does(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\nfor out; do :; done\n{script}\n")
        self.program.chmod(0o755)


_UNSHARE = ("unshare", "--mount", "--propagation", "private", "--")


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(tmp_path, monkeypatch)


def test_a_root_is_made_once_and_named_after_its_recipe(builder: Builder) -> None:
    builder.does('mkdir "$out"; echo made >> "$out/../count"')
    root = builder.images.get(RECIPE)
    assert builder.images.get(RECIPE) == root
    assert (root.parent / "count").read_text() == "made\n"
    changed = Recipe(name="tiny", suite="bookworm", packages=("none", "more"))
    assert builder.images.path(changed) != root
    assert not list(root.parent.glob("*.partial"))


def test_a_build_that_fails_says_so_and_the_next_one_starts_afresh(builder: Builder) -> None:
    builder.does('mkdir "$out"; touch "$out/half"; echo no such suite >&2; exit 1')
    with pytest.raises(LabUnavailable, match="no such suite"):
        builder.images.get(RECIPE)
    assert not builder.images.ready(RECIPE)
    builder.does('mkdir "$out"')
    assert not list(builder.images.get(RECIPE).iterdir())


def test_two_labs_do_not_build_the_same_root_twice(builder: Builder) -> None:
    builder.does('mkdir "$out"; echo made >> "$out/../count"; sleep 0.3')
    other = Images(builder.images.path(RECIPE).parents[1], say=builder.said.append)
    threads = [threading.Thread(target=each.get, args=(RECIPE,)) for each in (builder.images, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (builder.images.path(RECIPE).parent / "count").read_text() == "made\n"
    assert any("waiting" in line for line in builder.said)


def test_leftovers_of_a_running_build_are_not_swept(builder: Builder, tmp_path: Path) -> None:
    go = tmp_path / "go"
    builder.does(f'mkdir "$out"; while [ ! -e {go} ]; do sleep 0.02; done')
    thread = threading.Thread(target=builder.images.get, args=(RECIPE,))
    thread.start()
    partial = builder.images.path(RECIPE).with_name(builder.images.path(RECIPE).name + ".partial")
    while not partial.is_dir():
        thread.join(0.02)
    builder.images.sweep()
    assert partial.is_dir()
    go.touch()
    thread.join()
    assert builder.images.ready(RECIPE)


def test_down_takes_every_folder_of_the_lab_and_nothing_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSVM_LAB_CACHE", str(tmp_path / "cache"))
    for run_dir in (tmp_path / "lab", tmp_path / "home"):
        for name in ("machines/vms/r-9-VM", "operator/cache", "payloads/old", "control-plane/etcd"):
            (run_dir / name).mkdir(parents=True)
    (tmp_path / "home" / "letter").write_text("dear")
    for lab in ("lab", "home"):
        done = CliRunner().invoke(main, ["--dir", str(tmp_path / lab), "down"])
        assert done.exit_code == 0
        assert "removed 1 VM (r-9-VM)" in done.output
    assert not (tmp_path / "lab").exists()
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]
    assert CliRunner().invoke(main, ["--dir", str(tmp_path / "lab"), "down"]).output == "nothing to remove\n"


def test_a_command_that_needs_a_lab_says_that_none_is_up(tmp_path: Path) -> None:
    for words in (["ssh", "r-9-VM"], ["fault", "r-9-VM", "cut"], ["exec", "r-9-VM", "true"], ["kubectl", "get", "ns"]):
        done = CliRunner().invoke(main, ["--dir", str(tmp_path), *words])
        assert done.exit_code == 1, words
        assert "is up in" in done.output
    assert CliRunner().invoke(main, ["--dir", str(tmp_path), "up", "--vms", "r-1-VM"]).exit_code == 2
