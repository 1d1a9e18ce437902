"""Finds the programs of a control plane, and compiles them once where a machine has none.

No package registry has a kube-apiserver for every platform, but the Go module proxy has its source. The versions
are pinned by ``hack/lab/tools/go.mod``; the result is cached by what went into it, so that a second start compiles
nothing and a changed pin never meets an old binary. Looked for, in this order: ``KUBEBUILDER_ASSETS``, ``PATH``
(only if it has both etcd and kube-apiserver: half a set is of unknown versions), the cache, a build. With
``SYSVM_KUBECONFIG`` there is a cluster already and only clients are wanted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab import paths

Progress = Callable[[str], None]

_MODULE = paths.REPOSITORY / "hack" / "lab" / "tools"
_GO_LINE = r"^go (\S+)$"
_HEARTBEAT_SECONDS = 15.0
_GO_QUESTION_SECONDS = 300.0  # an older go may first fetch the one that the module names


class Unavailable(Exception):  # noqa: N818 - not a fault: the machine lacks something, and the message says what to do
    """This machine cannot run the control plane. The message is one sentence for a person, with the next step."""


class Tool(StrEnum):
    """The programs, by the name of their binary."""

    KUBE_APISERVER = "kube-apiserver"
    ETCD = "etcd"
    KUBE_CONTROLLER_MANAGER = "kube-controller-manager"
    KUBECTL = "kubectl"
    HELM = "helm"


SERVER = frozenset({Tool.ETCD, Tool.KUBE_APISERVER, Tool.KUBE_CONTROLLER_MANAGER})

# In this order: what kube-apiserver compiles is most of what the others need.
_PACKAGES: Mapping[Tool, str] = {
    Tool.KUBE_APISERVER: "k8s.io/kubernetes/cmd/kube-apiserver",
    Tool.ETCD: "go.etcd.io/etcd/server/v3",
    Tool.KUBECTL: "k8s.io/kubernetes/cmd/kubectl",
    Tool.KUBE_CONTROLLER_MANAGER: "k8s.io/kubernetes/cmd/kube-controller-manager",
    Tool.HELM: "helm.sh/helm/v4/cmd/helm",
}


def say(line: str) -> None:
    """The default place for progress: standard error, so that a command's output stays clean."""
    print(line, file=sys.stderr, flush=True)


def external_kubeconfig() -> Path | None:
    """The cluster that ``SYSVM_KUBECONFIG`` names, or None when the lab is to start its own.

    Raises:
        Unavailable: the variable is set and the file is not there.
    """
    value = os.environ.get("SYSVM_KUBECONFIG")
    if not value:
        return None
    path = Path(value).expanduser().absolute()
    if not path.is_file():
        raise Unavailable(
            f"SYSVM_KUBECONFIG names {path}, which is not a file: correct it, or unset it to have a server started."
        )
    return path


def find(need: Collection[Tool], *, progress: Progress = say) -> dict[Tool, Path]:
    """Path of each program in ``need``; compiles what is nowhere else, which takes minutes the first time.

    Raises:
        Unavailable: something is missing that cannot be built here.
    """
    folders, trusted = _folders(need)
    found: dict[Tool, Path] = {}
    for tool in need:
        for folder in folders:
            if _is_program(folder / tool):
                found[tool] = folder / tool
                break
        else:
            if tool in trusted:
                raise Unavailable(
                    f"KUBEBUILDER_ASSETS names {folders[0]}, which has no {tool}: correct it, or unset it."
                )
    missing = [tool for tool in _PACKAGES if tool in need and tool not in found]
    return found | (_built(missing, progress) if missing else {})


def _folders(need: Collection[Tool]) -> tuple[list[Path], frozenset[Tool]]:
    """Folders to search, and the tools that have to be in the first of them."""
    on_path = [Path(entry) for entry in os.get_exec_path() if entry]
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if external_kubeconfig() is not None and not SERVER.intersection(need):
        return on_path, frozenset()
    if assets:
        return [Path(assets).absolute(), *on_path], frozenset({Tool.ETCD, Tool.KUBE_APISERVER})
    if shutil.which(Tool.ETCD) and shutil.which(Tool.KUBE_APISERVER):
        return on_path, frozenset()
    return [], frozenset()


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


@dataclass(frozen=True)
class Toolchain:
    """What decides the bytes of a binary, besides the module's own files."""

    go: Path
    version: str
    platform: str

    @classmethod
    def locate(cls) -> Toolchain:
        """The Go that the pinned module will be built with (``go`` may fetch a newer one for itself, by its own rules).

        Raises:
            Unavailable: no Go, or one too old for the module.
        """
        go = shutil.which("go") or next((str(p) for p in [Path("/usr/local/go/bin/go")] if _is_program(p)), None)
        if go is None:
            raise Unavailable(
                f"No Kubernetes API server was found and no Go to build one: install Go {_pinned(_GO_LINE)} or newer "
                "(https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver, "
                "or SYSVM_KUBECONFIG to the kubeconfig of a cluster."
            )
        return _toolchain(go)


@functools.cache
def _toolchain(go: str) -> Toolchain:
    fits = _ask(go, "list", "-m")  # go env answers whatever the module demands, this does not
    if fits.returncode != 0:
        raise Unavailable(
            f"The control plane cannot be built with {go}, install Go {_pinned(_GO_LINE)} or newer "
            f"(https://go.dev/dl): {fits.stderr.strip()}"
        )
    answer = _ask(go, "env", "GOVERSION", "GOOS", "GOARCH")
    version, *platform = answer.stdout.split()
    return Toolchain(go=Path(go), version=version, platform="/".join(platform))


def _ask(go: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [go, *arguments]
    try:
        return subprocess.run(
            command,
            cwd=_MODULE,
            env=_go_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_GO_QUESTION_SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        raise Unavailable(
            f"`{' '.join(command)}` gave no answer in {late.timeout:.0f} s: run it by hand in {_MODULE}."
        ) from late


def cached_folder(toolchain: Toolchain) -> Path:
    """Where the binaries of this toolchain and these pins lie; the name is a digest of all that goes into them."""
    digest = hashlib.sha256((_MODULE / "go.sum").read_bytes())
    digest.update("\0".join([toolchain.version, toolchain.platform, _ldflags()]).encode())
    return paths.cache_dir() / "bin" / digest.hexdigest()[:16]


def _built(tools: Collection[Tool], progress: Progress) -> dict[Tool, Path]:
    toolchain = Toolchain.locate()
    folder = cached_folder(toolchain)
    folder.mkdir(parents=True, exist_ok=True)
    if not all(_is_program(folder / tool) for tool in tools):
        with _lock(folder / ".lock", progress):
            missing = [tool for tool in tools if not _is_program(folder / tool)]
            for leftover in folder.glob("*.partial"):
                leftover.unlink(missing_ok=True)
            if missing:
                progress(
                    f"Compiling {', '.join(missing)} with {toolchain.version}, once, into {folder} "
                    "(all five: 6 to 10 minutes on two cores, 6 GB of Go cache; later starts take seconds)"
                )
            for number, tool in enumerate(missing, start=1):
                _build(toolchain, tool, folder, f"[{number}/{len(missing)}] {tool}", progress)
    return {tool: folder / tool for tool in tools}


def _build(toolchain: Toolchain, tool: Tool, folder: Path, label: str, progress: Progress) -> None:
    started = time.monotonic()
    partial = folder / f"{tool}.partial"
    log = folder / f"{tool}.log"
    command = [str(toolchain.go), "build", "-trimpath", "-ldflags", _ldflags(), "-o", str(partial), _PACKAGES[tool]]
    progress(f"{label}: compiling")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=_MODULE, env=_go_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as build,
    ):
        try:
            while True:
                try:
                    code = build.wait(timeout=_HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    progress(f"{label}: {time.monotonic() - started:.0f} s so far{_doing(log)}")
        except BaseException:
            build.terminate()
            raise
    if code != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise Unavailable(f"{tool} could not be built ({log} has all of it): {last}")
    partial.replace(folder / tool)
    log.unlink()
    progress(f"{label}: built in {time.monotonic() - started:.0f} s")


def _doing(log: Path) -> str:
    """What go said last; it is silent while it compiles and talks while it downloads."""
    lines = log.read_text(errors="replace").splitlines()
    return f" ({lines[-1]})" if lines and lines[-1].startswith("go: downloading") else ""


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Waiting for another process that is compiling into {path.parent}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _go_environment() -> dict[str, str]:
    """The user's, but for settings that would change the result or look at files around the repository."""
    return os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def _pinned(pattern: str) -> str:
    match = re.search(pattern, (_MODULE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise Unavailable(f"{_MODULE / 'go.mod'} has no line like {pattern}: restore it from Git.")
    return match.group(1)


def kubernetes_version() -> str:
    """The pinned version, such as ``v1.37.2``."""
    return _pinned(r"^\s*k8s\.io/kubernetes (v\S+)")


def _ldflags() -> str:
    """Without these ``/version`` says v0.0.0-master and clients warn of skew."""
    kubernetes, helm = kubernetes_version(), _pinned(r"^\s*helm\.sh/helm/v4 (v\S+)")
    major, minor, *_ = kubernetes.removeprefix("v").split(".")
    base = "k8s.io/component-base/version"
    return (
        f"-s -w -X {base}.gitVersion={kubernetes} -X {base}.gitMajor={major} -X {base}.gitMinor={minor}"
        f" -X helm.sh/helm/v4/internal/version.version={helm}"
    )
