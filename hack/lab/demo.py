"""The whole story on this machine: four old VMs, a release, a broken one, a mended one, told while it happens.

Everything a person would type is shown as it is typed. The same steps are used by the system tests, so what the demo
shows is what is tested.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import chart
from lab.content import payloads, releases
from lab.content.releases import Release
from lab.controlplane import ControlPlane
from lab.machines import Lab
from lab.operator import OperatorProcess
from lab.spec import VM, VMSpec

NAMESPACE = "cloud"
OPERATOR_NAMESPACE = "sysvm-system"
ENDPOINT = "lab"
POLICY = "all-system-vms"
PAYLOADS = "payloads"
"""Folder of the run folder that the operator has as its payloads folder."""
SECRET = "cloudstack-ssh"  # its name
KEY = "id_rsa.cloud"
WATCHED_TREES = ("/opt", "/etc", "/root", "/usr/local/cloud", "/usr/share/cloud", "/var/cache/cloud", "/var/www")
_BY_CRON = re.compile(r"/root/((basic|advanced)_|health_checks(/utility)?/__pycache__)")
"""What CloudStack's monitoring writes, every three and ten minutes."""

Manifest = dict[str, Any]
Say = Callable[[str], None]


class DemoError(Exception):
    """The story did not go as it should; the message says at which point and where to look."""


@dataclass
class Stage:
    """The lab, the API server, the operator and what is needed to talk to them."""

    lab: Lab
    server: ControlPlane
    run_dir: Path
    say: Say
    operator: OperatorProcess | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def payloads_dir(self) -> Path:
        return self.run_dir / PAYLOADS

    @property
    def operator_dir(self) -> Path:
        return self.run_dir / "operator"

    def kubectl(self, *arguments: str, timeout_seconds: float = 60.0) -> str:
        return self.server.kubectl("-n", NAMESPACE, *arguments, timeout_seconds=timeout_seconds)

    def get(self, kind: str, name: str = "") -> Manifest:
        found: Manifest = json.loads(self.kubectl("get", kind, *([name] if name else []), "-o", "json"))
        return found


def raise_stage(run_dir: Path, specs: Sequence[VMSpec], say: Say) -> Stage:
    """Lab and API server, beside each other, at the old release."""
    lab = Lab(run_dir, say=say)
    with ThreadPoolExecutor(1) as beside:
        server = beside.submit(ControlPlane.start, run_dir / "control-plane", progress=say)
        lab.up(specs, release="old")
        stage = Stage(lab=lab, server=server.result(), run_dir=run_dir, say=say)
    say(f"API server {stage.server.url}")
    return stage


def start_operator(stage: Stage, *, environment: Mapping[str, str] | None = None) -> None:
    """What the chart renders, applied; the operator as a process with exactly that account and those settings."""
    rendered = chart.render("sysvm-operator", OPERATOR_NAMESPACE, {"watchNamespaces": [NAMESPACE]})
    stage.server.try_kubectl("create", "namespace", NAMESPACE)
    kubeconfig = chart.install_identity(stage.server, rendered)
    stage.payloads_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        **rendered.environment,
        "SYSVM_PAYLOADS_DIR": str(stage.payloads_dir),
        "SYSVM_CACHE_DIR": str(stage.run_dir / "operator" / "cache"),
        "SYSVM_HTTP_HOST": "127.0.0.1",
        "SYSVM_HTTP_PORT": "0",
        **(environment or {}),
    }
    stage.operator = OperatorProcess.start(stage.operator_dir, kubeconfig, settings, command=rendered.command)


def secret(stage: Stage) -> Manifest:
    """CloudStack's private key, where the operator may read it."""
    key = base64.b64encode(stage.lab.private_key.read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "data": {KEY: key},
    }


def endpoint(vms: Sequence[VM], *, management: str = "Full", interval: str = "15s") -> Manifest:
    """The lab's VMs as a person lists them."""
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "CloudStackEndpoint",
        "metadata": {"name": ENDPOINT, "namespace": NAMESPACE},
        "spec": {
            "inventory": "Static",
            "management": management,
            "systemVMs": [
                {
                    "name": vm.name,
                    "type": str(vm.spec.type),
                    "address": str(vm.relay_address),
                    "group": vm.spec.group or vm.name,
                    "host": vm.spec.host,
                    "zone": "lab",
                }
                for vm in vms
            ],
            "ssh": {"keySecretRef": {"name": SECRET, "key": KEY}},
            "scan": {"interval": interval},
        },
    }


def build_payload(stage: Stage, release: Release) -> tuple[Path, Path]:
    """cloud-scripts.tgz and agent.zip of a release, where the operator finds mounted payloads."""
    folder = stage.payloads_dir / release.name
    folder.mkdir(parents=True, exist_ok=True)
    scripts, agent = folder / "cloud-scripts.tgz", folder / "agent.zip"
    if not scripts.exists():
        scripts.write_bytes(payloads.build_scripts(release))
        agent.write_bytes(payloads.build_agent(release))
    return scripts, agent


def template(stage: Stage, release: Release) -> Manifest:
    """A release as an object: version and two files, each pinned by its digest."""
    scripts, agent = build_payload(stage, release)

    def file(path: Path) -> Manifest:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {
            "digest": f"sha256:{digest}",
            "source": {"mounted": {"path": str(path.relative_to(stage.payloads_dir))}},
        }

    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "SystemVMTemplate",
        "metadata": {"name": template_name(release), "namespace": NAMESPACE},
        "spec": {"version": release.version, "payload": {"files": {"scripts": file(scripts), "agent": file(agent)}}},
    }


def template_name(release: Release) -> str:
    return f"systemvm-{release.version}"


def policy(release: Release, **strategy: object) -> Manifest:
    """All VMs of the endpoint toward one release, one after the other."""
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "PatchPolicy",
        "metadata": {"name": POLICY, "namespace": NAMESPACE},
        "spec": {
            "endpointRef": {"name": ENDPOINT},
            "templateRef": {"name": template_name(release)},
            "strategy": {"maxUnavailable": 1, **strategy},
            "checks": {"settle": "2s"},
        },
    }


def apply(stage: Stage, *manifests: Manifest) -> None:
    stage.server.apply(manifests)


def wait_condition(
    stage: Stage, kind: str, name: str, condition: str, *, seconds: float, generation: bool = True
) -> Manifest:
    """Waits until the condition is True and speaks of the current spec. Raises DemoError with what it says instead."""
    deadline = time.monotonic() + seconds
    last: Manifest = {}
    while time.monotonic() < deadline:
        found = stage.get(kind, name)
        for last in found.get("status", {}).get("conditions", []):
            current = not generation or last.get("observedGeneration") == found["metadata"]["generation"]
            if last["type"] == condition and last["status"] == "True" and current:
                return found
        time.sleep(0.25)
    conditions = "; ".join(
        f"{each['type']}={each['status']} {each['reason']}: {each.get('message', '')}"
        for each in stage.get(kind, name).get("status", {}).get("conditions", [])
    )
    raise DemoError(
        f"{kind}/{name} did not become {condition} within {seconds:.0f} s. It says: {conditions}."
        f" The operator's log is {stage.operator_dir / 'operator.log'}"
    )


# The story


@dataclass
class Act:
    """One rollout of the story, for the summary."""

    title: str
    ending: str
    seconds: float
    roles: Mapping[str, str]
    """Redundancy roles when it began, by VM."""
    rows: list[tuple[str, str, str, str, str]]
    """VM, result, seconds, bytes, service actions; in the order in which they began."""


class Telling:
    """Prints what a person would type and what they would see."""

    def __init__(self, run_dir: Path, say: Say, show: Say) -> None:
        self._run_dir, self._say, self._show = run_dir, say, show
        self._began = time.monotonic()

    def _apply(self, stage: Stage, *manifests: Manifest) -> None:
        for manifest in manifests:
            self._show(f"$ kubectl apply -f {manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml")
        apply(stage, *manifests)

    def _table(self, stage: Stage, kinds: str, *options: str) -> None:
        self._show(f"$ kubectl get {' '.join((kinds, *options))}")
        self._show(indented(stage.kubectl("get", kinds, *options).rstrip()))

    def _heading(self, text: str) -> None:
        self._show(f"\n== {text}  [{time.monotonic() - self._began:.0f} s]")

    def _snapshots(self, stage: Stage, names: Sequence[str]) -> dict[str, Mapping[str, object]]:
        """Every file of these VMs that a patch could touch, but for those that their own cron writes."""

        def tree(name: str) -> Mapping[str, object]:
            found = stage.lab.snapshot_tree(name, WATCHED_TREES)
            return {path: entry for path, entry in found.items() if not _BY_CRON.match(path)}

        with ThreadPoolExecutor(len(names)) as beside:
            return dict(zip(names, beside.map(tree, names), strict=True))

    def _untouched(self, stage: Stage, before: Mapping[str, Mapping[str, object]]) -> None:
        """Every file of each VM as it was, and every service running. Raises DemoError."""
        for name, now in self._snapshots(stage, list(before)).items():
            then = before[name]
            different = sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))
            if different:
                raise DemoError(f"{name} is not as it was: {', '.join(different[:10])}")
        self._all_run(stage, list(before))
        files = sum(len(tree) for tree in before.values())
        self._show(
            f"Compared {files} files on {len(before)} VMs with what was there before (content, owner, mode, links,"
            " xattrs):\nall the same, and no service has failed."
        )

    def _all_run(self, stage: Stage, names: Sequence[str]) -> None:
        """No service of these VMs has failed. Raises DemoError."""
        for name in names:
            failed = stage.lab.exec(name, ["systemctl", "--failed", "--plain", "--no-legend"], check=False).stdout
            if failed.strip():
                raise DemoError(f"{name} has failed services: {failed.strip()}")


class Story(Telling):
    """The demo, act by act."""

    def __init__(self, run_dir: Path, specs: Sequence[VMSpec], say: Say, show: Say) -> None:
        super().__init__(run_dir, say, show)
        self._specs = specs
        self.acts: list[Act] = []

    def tell(self) -> None:
        """From nothing to the summary. The lab stays up, to be looked at."""
        self._heading("1. A cloud: an API server and system VMs at release 4.20.1")
        stage = raise_stage(self._run_dir, self._specs, self._say)
        for vm in stage.lab.vms():
            self._show(f"  {vm.name}: {vm.spec.type}{', one of a redundant pair' if vm.spec.redundant else ''}")
        self._say("installing the chart's objects and starting the operator with its service account")
        start_operator(stage)
        self._first(stage)
        self._broken(stage)
        self._mended(stage)
        self._summary(stage)

    def _first(self, stage: Stage) -> None:
        self._heading("2. kubectl apply: where the VMs are, what they should run, how they get there")
        release = releases.new()
        self._apply(stage, secret(stage), endpoint(stage.lab.vms()), template(stage, release))
        wait_condition(stage, "cse", ENDPOINT, "Ready", seconds=60)
        self._table(stage, "cse,svt,svm")
        began, roles = time.monotonic(), self._roles(stage)
        self._apply(stage, policy(release))
        self._during(stage)
        self._heading("   ... until every VM is verified at the release")
        self._show(f"$ kubectl wait --for=condition=Ready spp/{POLICY}")
        stage.kubectl("wait", "--for=condition=Ready", f"spp/{POLICY}", "--timeout=120s", timeout_seconds=130)
        self._table(stage, "svm,spp,svr")
        self._record(stage, "release 4.20.2", "all converged", began, roles)

    def _broken(self, stage: Stage) -> None:
        release = releases.broken()
        self._heading(
            f"3. Release {release.version} breaks apache2: its validator accepts the file, the daemon dies on it"
        )
        before = self._snapshots(stage, [vm.name for vm in stage.lab.vms()])
        began, roles = time.monotonic(), self._roles(stage)
        self._apply(stage, template(stage, release), policy(release))
        stalled = wait_condition(stage, "spp", POLICY, "Stalled", seconds=120)
        self._table(stage, "svm,spp")
        message = next(each["message"] for each in stalled["status"]["conditions"] if each["type"] == "Stalled")
        self._show("The policy is Stalled, and says:\n" + indented(message))
        self._untouched(stage, before)
        self._record(stage, f"release {release.version} (broken)", "one VM rolled back, no other touched", began, roles)

    def _mended(self, stage: Stage) -> None:
        release = releases.mended()
        self._heading(f"4. Release {release.version} mends it")
        began, roles = time.monotonic(), self._roles(stage)
        self._apply(stage, template(stage, release), policy(release))
        wait_condition(stage, "spp", POLICY, "Ready", seconds=180)
        self._table(stage, "svm,spp,svr")
        self._record(stage, f"release {release.version} (mended)", "all converged", began, roles)

    def _during(self, stage: Stage) -> None:
        """Shows the tables once in the middle of the rollout: when the second VM is in work."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            counts = stage.get("spp", POLICY).get("status", {}).get("counts", {})
            if counts.get("converged", 0) >= 1 and counts.get("updating", 0) >= 1:
                self._table(stage, "svm,spp,svr")
                return
            if counts and counts.get("converged") == counts.get("applicable"):
                return
            time.sleep(0.3)
        raise DemoError(f"no VM was patched within 120 s. The operator's log is {stage.operator_dir / 'operator.log'}")

    def _record(self, stage: Stage, title: str, ending: str, began: float, roles: Mapping[str, str]) -> None:
        rollout = stage.get("spp", POLICY)["status"]["lastRollout"]["name"]
        timed = []
        for vm in stage.get("svm")["items"]:
            for entry in vm["status"].get("history", []):
                if entry["rollout"] == rollout:
                    actions = ", ".join(_action(action) for action in entry.get("services", [])) or "none"
                    row = (
                        vm["status"]["identity"]["name"],
                        str(entry["result"]),
                        f"{entry.get('seconds', 0):.0f}",
                        f"{entry.get('bytesSent', 0):,}",
                        actions,
                    )
                    timed.append((entry["startedAt"], row))
        rows = [row for _, row in sorted(timed)]
        self.acts.append(Act(title, ending, time.monotonic() - began, roles, rows))

    def _roles(self, stage: Stage) -> dict[str, str]:
        return {
            vm["status"]["identity"]["name"]: vm["status"]["redundancy"]["role"]
            for vm in stage.get("svm")["items"]
            if "redundancy" in vm.get("status", {})
        }

    def _summary(self, stage: Stage) -> None:
        self._heading("5. What happened")
        for act in self.acts:
            self._show(f"{act.title}: {act.ending}, {act.seconds:.0f} s")
            for row in act.rows:
                self._show("  {:10} {:11} {:>3} s {:>10} bytes sent  services: {}".format(*row))
        scripts, agent = build_payload(stage, releases.new())
        self._show(
            f"The payload is {scripts.stat().st_size:,} + {agent.stat().st_size:,} bytes (the lab's agent.zip is scaled"
            " down); the operator's memory is "
            f"{_resident_mib(stage)} MiB."
        )
        self._show(f"\nDone in {time.monotonic() - self._began:.0f} s. The lab is up; to look around:\n" + LOOK_AROUND)


LOOK_AROUND = """\
  .venv/bin/python -m lab kubectl -n cloud get svm,spp,svr -o wide
  .venv/bin/python -m lab kubectl -n cloud get events --sort-by=.lastTimestamp
  .venv/bin/python -m lab kubectl -n cloud get svm lab-r-103-vm -o yaml     (history, steps, what was observed)
  .venv/bin/python -m lab ssh r-103-VM                                      (a real system VM)
  .venv/bin/python -m lab fault r-103-VM silence                            (and watch svm; heal mends it)
  .venv/bin/python -m lab status
  make demo-down                                                            (takes everything away)"""


def _action(action: Mapping[str, Any]) -> str:
    gap = action.get("unavailableSeconds")
    measured = f" (longest gap {gap:.2f} s)" if gap is not None else ""
    return f"{action['name']} {action['action'].lower()}{measured}"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _resident_mib(stage: Stage) -> int:
    if stage.operator is None:
        return 0
    status = Path(f"/proc/{stage.operator.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024
