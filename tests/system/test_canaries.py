"""Secrets that were planted, and every place that a patch writes to, searched for them.

A whole run on a real API server and a real system VM: the operator as a process with the chart's account, at debug
level, a patch that ends well, one that is rolled back, and then keys that cannot be read.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from lab import Lab, SystemVMType, VMSpec, demo, preflight
from lab.cli import take_down
from lab.content import releases

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-71-VM"
KINDS = "cse,svt,svm,spp,svr,configmaps,events,leases"


class Watch:
    """Looks at arguments and environment of every process of this machine, those inside of the VMs included, and at
    what the operator serves over HTTP, all the time."""

    def __init__(self, canaries: dict[str, bytes], pages: str) -> None:
        self.found: set[str] = set()
        self.seen: set[bytes] = set()
        self.environments: set[bytes] = set()
        self.metrics = b""
        self._canaries = canaries
        self._pages = pages
        self._environed: set[tuple[str, bytes]] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._look_at(folder)
            self._scrape()

    def _look_at(self, folder: Path) -> None:
        arguments = (folder / "cmdline").read_bytes()
        self._judge(arguments, self.seen)
        # Once for what a process runs: arguments and environment change together, when it runs something else.
        if (folder.name, arguments) not in self._environed:
            self._environed.add((folder.name, arguments))
            self._judge((folder / "environ").read_bytes(), self.environments)

    def _scrape(self) -> None:
        for page in ("metrics", "healthz", "readyz"):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._pages}/{page}", timeout=5) as answer:
                said = answer.read()
                self._judge(said, set())
                if page == "metrics":
                    self.metrics = said

    def _judge(self, text: bytes, judged: set[bytes]) -> None:
        if text in judged:
            return
        judged.add(text)
        self.found |= {f"{name}: {text[:200]!r}" for name, canary in self._canaries.items() if canary in text}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def parts(key: bytes) -> dict[str, bytes]:
    """Every line of the key's body but the first, which is alike in all keys, and the same as a Secret has it."""
    lines = [line for line in key.splitlines() if line and not line.startswith(b"-----")]
    found = {f"private key, line {number}": line for number, line in enumerate(lines) if number and len(line) > 30}
    encoded = base64.b64encode(key)
    found |= {f"private key in base64, from {at}": encoded[at : at + 60] for at in range(240, len(encoded) - 60, 120)}
    assert len(found) > 3
    return found


def holding(folder: Path, canaries: dict[str, bytes], besides: list[Path]) -> Iterator[str]:
    """Files below `folder`, and the names of files, that hold a canary."""
    for path in folder.rglob("*"):
        if (
            any(path == each or path.is_relative_to(each) for each in besides)
            or not path.is_file()
            or path.is_symlink()
        ):
            continue
        content = str(path).encode() + b"\n" + path.read_bytes()
        for name, canary in canaries.items():
            if canary in content:
                yield f"{name} in {path.relative_to(folder)}"


def in_the_cluster(stage: demo.Stage, canaries: dict[str, bytes], known_hosts: str) -> Iterator[str]:
    """Objects of every kind but Secrets; compressed data (plans) is opened."""
    for item in json.loads(stage.kubectl("get", KINDS, "-o", "json"))["items"]:
        place = f"{item['kind']} {item['metadata']['name']}"
        if place == f"ConfigMap {known_hosts}":
            continue
        text = json.dumps(item).encode()
        for value in (item.get("binaryData") or {}).values():
            text += gzip.decompress(base64.b64decode(value))
        for name, canary in canaries.items():
            if canary in text:
                yield f"{name} in {place}"


@pytest.mark.timeout(900)
def test_no_secret_is_left_anywhere(tmp_path: Path) -> None:
    run_dir = tmp_path / "lab"
    lab = Lab(run_dir)
    try:
        stage = demo.raise_stage(run_dir, [VMSpec(name=NAME, type=SystemVMType.ROUTER, index=71)], lambda _: None)
        whole_run(stage)
    finally:
        take_down(lab)


def whole_run(stage: demo.Stage) -> None:
    word = f"canary{secrets.token_hex(8)}"
    api_secret = f"apicanary{secrets.token_hex(8)}"
    passphrase = f"passcanary{secrets.token_hex(8)}"
    keystore = f"kscanary{secrets.token_hex(8)}"
    hosts = f"hostcanary{secrets.token_hex(8)}"
    key = stage.lab.private_key.read_bytes()
    locked = asyncssh.generate_private_key("ssh-rsa").export_private_key("pkcs8-pem", passphrase=passphrase)
    canaries = {
        **parts(key),
        **{f"locked key, {name}": part for name, part in parts(locked).items()},
        "other data of the Secret": word.encode(),
        "API secret": api_secret.encode(),
        "passphrase": passphrase.encode(),
        "comment in known_hosts": hosts.encode(),
    }
    # The VM's own: the operator reads the boot arguments, and shows none of them.
    boot = stage.lab.read_bytes(NAME, "/var/cache/cloud/cmdline").rstrip() + f" keystore_password={keystore}\n".encode()
    stage.lab.write_bytes(NAME, "/var/cache/cloud/cmdline", boot)
    told = {**canaries, "keystore password of the VM": keystore.encode()}

    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    demo.start_operator(stage, environment={"SYSVM_LOG_LEVEL": "debug", "SYSVM_HTTP_PORT": str(port)})
    release = releases.new()
    login = demo.secret(stage)
    others = {"another": word, "apiKey": "not-secret", "secretKey": api_secret, "passphrase": passphrase}
    login["data"] |= {name: base64.b64encode(value.encode()).decode() for name, value in others.items()}
    known = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "known-hosts", "namespace": demo.NAMESPACE},
        "data": {"known_hosts": f"# {hosts}\n{stage.lab.known_hosts()}"},
    }
    endpoint = demo.endpoint(stage.lab.vms())
    reference = {"name": "known-hosts", "key": "known_hosts"}
    endpoint["spec"]["ssh"]["hostKeys"] = {"policy": "Strict", "knownHostsRef": reference}
    with Watch(told, f"http://127.0.0.1:{port}") as watch:
        demo.apply(stage, login, known, endpoint, demo.template(stage, release), demo.policy(release))
        demo.wait_condition(stage, "spp", demo.POLICY, "Ready", seconds=240)
        # The way back writes other files, other records and other sentences.
        broken = releases.broken()
        demo.apply(stage, demo.template(stage, broken), demo.policy(broken))
        await_rolled_back(stage)
        # A key that is locked, and one that is bent in the middle: what is said about them quotes none of them.
        login["data"][demo.KEY] = base64.b64encode(locked).decode()
        demo.apply(stage, login)
        await_reason(stage, "CredentialsUnreadable", "passphrase")
        bent = key[: len(key) // 2] + word.encode() + key[len(key) // 2 :]
        login["data"][demo.KEY] = base64.b64encode(bent).decode()
        demo.apply(stage, login)
        await_reason(stage, "CredentialsUnreadable", "cannot be read")

    log = (stage.operator_dir / "operator.log").read_text()
    assert "RolloutSucceeded" in log, "the log does not tell of the patch"
    assert "RolledBack" in log, "the log does not tell of the way back"
    assert len(watch.seen) > 20
    assert any(b"SYSVM_LOG_LEVEL=debug" in environment for environment in watch.environments), "the operator's own"
    assert any(b"LC_ALL=C" in environment for environment in watch.environments), "a child of the program on the VM"
    assert b'result="RolledBack"' in watch.metrics, "the metrics do not tell of the way back"
    assert any(b"sysvm_remote" in arguments for arguments in watch.seen), "the program on the VM was not seen"
    assert watch.found == set()
    assert list(in_the_cluster(stage, told, "known-hosts")) == []
    assert list(holding(stage.operator_dir, told, [])) == []
    # The whole lab: root trees of the VM, its console, the API server's logs. Not the store of the API server, which
    # is where a Secret lies, nor the key itself.
    owned = [stage.lab.private_key, *stage.run_dir.glob("control-plane/etcd*")]
    assert list(holding(stage.run_dir, canaries, owned)) == []
    tree = ["/etc", "/opt", "/var", "/root", "/tmp", "/run", "/usr/local", "/usr/share/cloud", "/dev/shm"]
    for name, canary in told.items():
        said = stage.lab.exec(NAME, ["grep", "-rlsF", "--devices=skip", "-e", canary.decode(), *tree], check=False)
        places = [line for line in said.stdout.splitlines() if line != "/var/cache/cloud/cmdline"]
        assert places == [], name


def await_rolled_back(stage: demo.Stage) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        operations = [each.get("status", {}).get("operation", {}) for each in stage.get("svm")["items"]]
        if [each.get("result") for each in operations] == ["RolledBack"]:
            return
        time.sleep(0.5)
    raise AssertionError(f"the VM was not taken back: {operations}")


def await_reason(stage: demo.Stage, reason: str, word: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        conditions = stage.get("cse", demo.ENDPOINT).get("status", {}).get("conditions", [])
        if any(each["reason"] == reason and word in each["message"] for each in conditions):
            return
        time.sleep(0.5)
    raise AssertionError(f"the endpoint never said {reason}: {conditions}")
