"""How the lab finds its programs, keeps its keys and knows its own processes; no server is needed for any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.controlplane import Unavailable, binaries, pki, processes


def eventually(holds: Callable[[], bool], within_seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + within_seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class TestRecordedProcesses:
    """Nothing that is not ours is ever signalled."""

    def test_a_pid_that_was_used_again_is_left_alone(self, tmp_path: Path) -> None:
        stranger = subprocess.Popen(["sleep", "60"])
        try:
            record = tmp_path / "etcd.process.json"
            record.write_text(json.dumps({"argv": ["sleep", "60"], "pid": stranger.pid}))
            assert processes.stop(tmp_path, "etcd", grace_seconds=0.2)
            assert stranger.poll() is None
            assert not record.exists()
        finally:
            stranger.kill()
            stranger.wait()

    def test_a_process_is_found_by_its_intent_alone(self, tmp_path: Path) -> None:
        started = processes.start(tmp_path, "sleeper", ["sleep", "60"], log=tmp_path / "log")
        started.record.write_text(json.dumps({"argv": ["sleep", "60"], "pid": None}))
        assert processes.load(tmp_path, "sleeper").alive()  # type: ignore[union-attr]
        assert processes.stop(tmp_path, "sleeper", grace_seconds=5)
        assert not started.alive()

    def test_what_was_just_started_is_known_at_once(self, tmp_path: Path) -> None:
        for number in range(40):
            started = processes.start(tmp_path, f"sleeper-{number}", ["sleep", "60"], log=tmp_path / "log")
            assert processes._is_ours(started.pid or 0, started), "another process would leave it running"
            assert processes.stop(tmp_path, f"sleeper-{number}", grace_seconds=5)

    def test_another_process_ends_it(self, tmp_path: Path) -> None:
        started = processes.start(tmp_path, "sleeper", ["sleep", "60"], log=tmp_path / "log")
        script = (
            "import sys; from pathlib import Path; from lab.controlplane import processes; "
            "sys.exit(not processes.stop(Path(sys.argv[1]), 'sleeper', grace_seconds=5))"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", script, str(tmp_path)]
        assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == 0
        assert not started.alive()

    def test_what_ignores_a_request_is_killed(self, tmp_path: Path) -> None:
        shell = 'trap "" TERM; echo deaf; while :; do sleep 0.05; done'
        started = processes.start(tmp_path, "deaf", ["sh", "-c", shell], log=tmp_path / "log")
        assert eventually(lambda: "deaf" in (tmp_path / "log").read_text())
        assert not processes.stop(tmp_path, "deaf", grace_seconds=0.2)
        assert not started.alive()


class TestFinding:
    """Where the programs come from, without any of them."""

    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("SYSVM_KUBECONFIG", "KUBEBUILDER_ASSETS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SYSVM_LAB_CACHE", str(tmp_path / "cache"))

    @staticmethod
    def folder(path: Path, *programs: str) -> Path:
        path.mkdir()
        for program in programs:
            (path / program).write_text("#!/bin/sh\n")
            (path / program).chmod(0o755)
        return path

    def test_assets_come_before_the_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assets = self.folder(tmp_path / "assets", "etcd", "kube-apiserver")
        on_path = self.folder(tmp_path / "path", "etcd", "kube-apiserver", "kubectl")
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
        monkeypatch.setenv("PATH", str(on_path))
        found = binaries.find([binaries.Tool.ETCD, binaries.Tool.KUBE_APISERVER, binaries.Tool.KUBECTL])
        assert [found[tool].parent.name for tool in found] == ["assets", "assets", "path"]

    def test_assets_without_a_server_are_a_mistake_and_not_a_reason_to_compile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(self.folder(tmp_path / "assets", "etcd")))
        with pytest.raises(Unavailable, match="has no kube-apiserver"):
            binaries.find([binaries.Tool.ETCD, binaries.Tool.KUBE_APISERVER])

    def test_a_kubectl_alone_on_the_path_is_of_an_unknown_version(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(self.folder(tmp_path / "path", "kubectl")))
        monkeypatch.setattr(
            binaries.Toolchain, "locate", classmethod(lambda cls: cls(Path("go"), "go1.26.0", "linux/amd64"))
        )
        built: list[str] = []
        monkeypatch.setattr(binaries, "_build", lambda toolchain, tool, folder, label, progress: built.append(tool))
        binaries.find([binaries.Tool.KUBECTL], progress=lambda line: None)
        assert built == ["kubectl"]

    def test_without_go_one_sentence_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(self.folder(tmp_path / "path")))
        monkeypatch.setattr(binaries, "_is_program", lambda path: False)
        with pytest.raises(Unavailable, match=r"install Go 1\.\d+\S* or newer .*KUBEBUILDER_ASSETS"):
            binaries.find([binaries.Tool.ETCD])

    def test_a_go_that_is_too_old_is_told_with_its_own_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go = self.folder(tmp_path / "path", "go") / "go"
        go.write_text('#!/bin/sh\necho "go: go.mod requires go >= 1.26.0 (running go 1.22.1)" >&2\nexit 1\n')
        monkeypatch.setenv("PATH", f"{go.parent}{os.pathsep}/bin")
        with pytest.raises(Unavailable, match=r"install Go 1\.\d+.*running go 1\.22\.1"):
            binaries.find([binaries.Tool.ETCD])

    def test_a_named_cluster_that_is_not_there_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYSVM_KUBECONFIG", str(tmp_path / "nothing"))
        with pytest.raises(Unavailable, match="not a file"):
            binaries.external_kubeconfig()


def test_the_authoritys_key_is_never_written(tmp_path: Path) -> None:
    made = pki.create(tmp_path / "pki", service_address="10.0.0.1")
    assert {path.name for path in (tmp_path / "pki").glob("*.key")} == {
        "apiserver.key",
        "admin.key",
        "service-accounts.key",
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "pki").glob("*.key"))
    assert made.authority.is_file()
