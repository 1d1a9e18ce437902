"""What the real API server makes of good and bad manifests: refusals in sentences, defaults, columns, selectors."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sysvm.api.base import API_VERSION, PENDING_STATUS
from sysvm.api.crds import KINDS, Kind

if TYPE_CHECKING:
    from lab.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
DIGEST = f"sha256:{'a' * 64}"
UNSET = object()

pytestmark = pytest.mark.usefixtures("crds")

Manifest = dict[str, Any]

SPECS: dict[str, Manifest] = {
    "CloudStackEndpoint": {
        "inventory": "Static",
        "systemVMs": [{"name": "r-101-VM", "type": "router", "address": "192.0.2.11"}],
        "ssh": {"keySecretRef": {"name": "cs-ssh", "key": "id_rsa.cloud"}},
    },
    "SystemVMTemplate": {
        "version": "4.20.2",
        "payload": {"files": {"scripts": {"digest": DIGEST, "source": {"mounted": {"path": "4.20.2/scripts.tgz"}}}}},
    },
    "PatchPolicy": {"endpointRef": {"name": "prod"}, "templateRef": {"name": "systemvm-4.20.2"}},
    "SystemVM": {"endpointRef": {"name": "prod"}},
    "Rollout": {
        "policyRef": {"name": "routers"},
        "endpointRef": {"name": "prod"},
        "templateRef": {"name": "systemvm-4.20.2"},
        "revision": "8c1f03ab" * 8,
        "number": 1,
        "planRef": {"name": "routers-8c1f03ab-1-plan", "digest": DIGEST},
        "snapshot": {"methods": ["LivePatch"], "livePatch": {}, "strategy": {}, "checks": {}},
    },
    "RolloutApproval": {
        "rolloutRef": {"name": "routers-8c1f03ab-1"},
        "wave": "rest",
        "waveDigest": DIGEST,
        "decision": "Approved",
        "approver": "alice",
    },
    "MaintenanceWindow": {
        "effect": "Allow",
        "schedule": {
            "rrule": "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH",
            "start": "22:00",
            "duration": "6h",
            "timeZone": "Europe/Amsterdam",
        },
    },
}


JUMP: Manifest = {
    "keySecretRef": {"name": "kvm", "key": "id_ed25519"},
    "knownHostsRef": {"name": "kvm", "key": "known_hosts"},
}


def manifest(kind: str, *edits: tuple[str, object], name: str = "x") -> Manifest:
    """The smallest object of a kind, with `spec...` paths set to other values or removed (UNSET)."""
    found: Manifest = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": copy.deepcopy(SPECS[kind]),
    }
    for path, value in edits:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = found
        for parent in parents:
            place = place[parent] if isinstance(parent, int) else place.setdefault(parent, {})
        if value is UNSET:
            del place[last]
        else:
            place[last] = value
    return found


class Server:
    """kubectl in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace

    def kubectl(self, *arguments: str) -> str:
        return self.control_plane.kubectl(f"--namespace={self.namespace}", *arguments)

    def create(self, content: Manifest, *flags: str) -> Manifest:
        text = self.control_plane.kubectl(
            "create", f"--namespace={self.namespace}", "-f", "-", "-o", "json", *flags, stdin=json.dumps(content)
        )
        answer: Manifest = json.loads(text)
        return answer

    def refusal(self, verb: str, content: Manifest) -> str:
        """What kubectl says; fails if the server would accept the object. Nothing is kept."""
        result = self.control_plane.try_kubectl(
            verb, f"--namespace={self.namespace}", "--dry-run=server", "-f", "-", stdin=json.dumps(content)
        )
        assert result.returncode != 0, f"accepted: {content}"
        return result.stderr

    def get(self, kind: str, name: str) -> Manifest:
        answer: Manifest = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return answer

    def set_status(self, kind: str, name: str, status: Manifest) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)


@pytest.fixture
def server(control_plane: ControlPlane, namespace: str) -> Server:
    return Server(control_plane, namespace)


AMOUNT = "must be a whole number from 1, or a percentage from 1% to 100%"
SOURCE = "spec.payload.files.scripts.source"
ONE_SOURCE = "exactly one of http, oci, configMapRef and mounted is needed"
ONE_PAYLOAD = "exactly one of package, host, managementServer and files is needed"
PACKAGE = {"url": "https://packages.example.com/cloudstack-common_4.20.2.0_all.deb", "digest": DIGEST}
SERVERS = {
    "addresses": ["192.0.2.5", "ms-2.example.com"],
    "keySecretRef": {"name": "ms", "key": "id"},
    "knownHostsRef": {"name": "ms", "key": "known_hosts"},
}
VM = "spec.systemVMs.0"
ONCE = {"from": "2026-12-01T00:00:00Z", "to": "2026-12-02T00:00:00Z"}


def window(*edits: tuple[str, object]) -> Manifest:
    """A maintenance window with fields of its schedule set (`rrule`) or fields of its spec (`spec.cutoff`)."""
    placed = [(path if path.startswith("spec.") else f"spec.schedule.{path}", value) for path, value in edits]
    return manifest("MaintenanceWindow", *placed)


API = {"url": "https://cloud.example.com/client/api", "credentialsSecretRef": {"name": "cs-api"}}
CLOUD = (("spec.inventory", "CloudStack"), ("spec.systemVMs", UNSET))


def cloud(**api: object) -> Manifest:
    """An endpoint with the inventory of a management server, with fields of its `api` set."""
    return manifest("CloudStackEndpoint", *CLOUD, ("spec.api", {**API, **api}))


IMAGE = {
    "hypervisor": "KVM",
    "name": "systemvm-kvm-4.20.2-x86_64",
    "url": "https://images.example/systemvm.qcow2.bz2",
    "checksum": f"sha512:{'a' * 128}",
}


def images(*items: Manifest, **more: object) -> Manifest:
    """A release with these images."""
    return manifest("SystemVMTemplate", ("spec.images", {"items": list(items), **more}))


def without(image: Manifest, *fields: str) -> Manifest:
    return {name: value for name, value in image.items() if name not in fields}


INTEGRATION_PORT = "port 8096 is the integration port, which obeys everybody without a key: it is never used"
API_URL = "must be a URL such as https://cloud.example.com/client/api, without user and query"

REFUSED: dict[str, tuple[Manifest, str]] = {
    "cloud without an API": (manifest("CloudStackEndpoint", *CLOUD), "inventory CloudStack needs api"),
    "integration port": (cloud(url="http://cloud.example.com:8096/client/api"), INTEGRATION_PORT),
    "integration port with TLS and no path": (cloud(url="https://cloud.example.com:8096"), INTEGRATION_PORT),
    "integration port of an IPv6 address": (cloud(url="http://[2001:db8::1]:08096/"), INTEGRATION_PORT),
    "URL with a password": (cloud(url="https://admin:secret@cloud.example.com/client/api"), API_URL),
    "URL with a query": (cloud(url="https://cloud.example.com/client/api?command=listZones"), API_URL),
    "URL of another protocol": (cloud(url="ftp://cloud.example.com/client/api"), API_URL),
    "no patience with the API": (cloud(timeout="0s"), "must be at least 1s"),
    "endless patience with the API": (cloud(timeout="11m"), "must be at most 10m"),
    "no requests": (cloud(limits={"requestsPerSecond": 0}), "greater than or equal to 1"),
    "a storm of requests": (cloud(limits={"requestsPerSecond": 101}), "less than or equal to 100"),
    "a storm of jobs": (cloud(limits={"asyncJobs": 65}), "less than or equal to 64"),
    "API without keys": (cloud(credentialsSecretRef=None), "credentialsSecretRef"),
    "image name that is no system VM template": (
        images({**IMAGE, "name": "ubuntu-24.04"}),
        "must be the name of a system VM template, such as systemvm-kvm-4.20.2-x86_64",
    ),
    "image of another version": (
        images({**IMAGE, "name": "systemvm-kvm-4.20.20-x86_64"}),
        "a name must say hypervisor and version of the release",
    ),
    "image of another hypervisor": (
        images({**IMAGE, "name": "systemvm-vmware-4.20.2"}),
        "a name must say hypervisor and version of the release",
    ),
    "image checksum without algorithm": (
        images({**IMAGE, "checksum": "a" * 128}),
        "must be sha256:, sha512: or md5: followed by all hexadecimal digits",
    ),
    "two images of one kind": (
        images(IMAGE, {**IMAGE, "name": "systemvm-kvm-4.20.2-x86_64-b"}),
        "must hold one image for a hypervisor and architecture, not two",
    ),
    "image to register without a place": (
        images(without(IMAGE, "url"), mode="Register"),
        "mode Register needs url and checksum of every image",
    ),
    "image to register without a checksum": (
        images(without(IMAGE, "checksum"), mode="Register"),
        "mode Register needs url and checksum of every image",
    ),
    "no images": (images(), "should have at least 1 items"),
    "promotion that is no word": (
        images(IMAGE, acceptPromotion="yes"),
        "the eight characters that status.promotion says",
    ),
    "policy that follows itself": (
        manifest("PatchPolicy", ("spec.after", [{"name": "x"}])),
        "spec.after must not name the policy itself: it would never begin",
    ),
    "policy that follows one twice": (
        manifest("PatchPolicy", ("spec.after", [{"name": "a"}, {"name": "a"}])),
        "Duplicate value",
    ),
    "kind of redundancy that is none": (
        manifest("PatchPolicy", ("spec.selector.redundancy", "Pair")),
        'supported values: "Redundant", "Single"',
    ),
    "cloud accepted with a sentence": (
        manifest("Rollout", ("spec.acceptCloud", "go on")),
        "must be the eight characters that status.cloud.word says",
    ),
    "unknown field": (manifest("PatchPolicy", ("spec.strategy.wavs", [])), 'unknown field "spec.strategy.wavs"'),
    "misspelt field": (manifest("CloudStackEndpoint", ("spec.managment", "Full")), 'unknown field "spec.managment"'),
    "missing reference": (manifest("PatchPolicy", ("spec.templateRef", UNSET)), "spec.templateRef: Required value"),
    "version of one number": (manifest("SystemVMTemplate", ("spec.version", "420")), "two to four numbers"),
    "version with a letter": (manifest("SystemVMTemplate", ("spec.version", "4.20.x")), "such as 4.20.2"),
    "version as a number": (manifest("SystemVMTemplate", ("spec.version", 4.2)), 'must be of type string: "number"'),
    "count of zero": (manifest("PatchPolicy", ("spec.strategy.maxUnavailable", 0)), AMOUNT),
    "negative count": (manifest("PatchPolicy", ("spec.strategy.maxUnavailable", -3)), AMOUNT),
    "zero percent": (manifest("PatchPolicy", ("spec.strategy.maxUnavailable", "0%")), AMOUNT),
    "more than all": (manifest("PatchPolicy", ("spec.strategy.maxUnavailable", "101%")), AMOUNT),
    "count as a text": (manifest("PatchPolicy", ("spec.strategy.maxUnavailable", "5")), AMOUNT),
    "no VM on a host": (manifest("PatchPolicy", ("spec.strategy.perHost", 0)), "greater than or equal to 1"),
    "negative tolerance": (
        manifest("PatchPolicy", ("spec.readiness.maxUnreachable", -1)),
        "greater than or equal to 0",
    ),
    "no history": (manifest("PatchPolicy", ("spec.historyLimit", 0)), "greater than or equal to 1"),
    "unknown type in a selector": (
        manifest("PatchPolicy", ("spec.selector.types", ["routr"])),
        'supported values: "secstorage", "consoleproxy", "router"',
    ),
    "unknown type of a VM": (manifest("CloudStackEndpoint", (f"{VM}.type", "vm")), 'supported values: "secstorage"'),
    "unknown method": (manifest("PatchPolicy", ("spec.methods", ["Replace"])), 'supported values: "LivePatch"'),
    "no method": (manifest("PatchPolicy", ("spec.methods", [])), "should have at least 1 items"),
    "policy name too long": (manifest("PatchPolicy", name="p" * 41), "must not be longer than 40 characters"),
    "endpoint name too long": (manifest("CloudStackEndpoint", name="e" * 41), "must not be longer than 40 characters"),
    "no source": (manifest("SystemVMTemplate", (SOURCE, {})), ONE_SOURCE),
    "two sources": (manifest("SystemVMTemplate", (f"{SOURCE}.http", {"url": "https://a.example/s.tgz"})), ONE_SOURCE),
    "no payload": (manifest("SystemVMTemplate", ("spec.payload", {})), ONE_PAYLOAD),
    "two payloads": (manifest("SystemVMTemplate", ("spec.payload.host", {})), ONE_PAYLOAD),
    "package without a digest": (
        manifest("SystemVMTemplate", ("spec.payload", {"package": {"url": PACKAGE["url"]}})),
        "spec.payload.package.digest: Required value",
    ),
    "artifact without a registry": (
        manifest("SystemVMTemplate", (SOURCE, {"oci": {"ref": "cloud/agent:4.20.2"}})),
        "must be registry/repository",
    ),
    "artifact with a scheme": (
        manifest("SystemVMTemplate", (SOURCE, {"oci": {"ref": "http://registry.example.com/agent"}})),
        "must be registry/repository",
    ),
    "management servers nobody can recognise": (
        manifest(
            "SystemVMTemplate",
            ("spec.payload", {"managementServer": {k: v for k, v in SERVERS.items() if k != "knownHostsRef"}}),
        ),
        "spec.payload.managementServer.knownHostsRef: Required value",
    ),
    "a management server twice": (
        manifest("SystemVMTemplate", ("spec.payload", {"managementServer": SERVERS | {"addresses": ["a1", "a1"]}})),
        "Duplicate value",
    ),
    "way out of the mounted folder": (
        manifest("SystemVMTemplate", (f"{SOURCE}.mounted.path", "a/../../etc/shadow")),
        "path must not contain '..'",
    ),
    "absolute mounted path": (
        manifest("SystemVMTemplate", (f"{SOURCE}.mounted.path", "/etc/shadow")),
        "must be a relative path",
    ),
    "URL without a scheme": (
        manifest("SystemVMTemplate", (f"{SOURCE}", {"http": {"url": "files.example/s.tgz"}})),
        "begins with http:// or https://",
    ),
    "digest without algorithm": (
        manifest("SystemVMTemplate", ("spec.payload.files.scripts.digest", "a" * 64)),
        "must be sha256:, sha512: or md5:",
    ),
    "odd range of versions": (
        manifest(
            "SystemVMTemplate",
            ("spec.livePatch.compatibility", [{"from": "4.19", "to": ">=4.20", "supported": True}]),
        ),
        "must be a version range, such as <4.20 or >=4.16,<4.20",
    ),
    "Static without VMs": (
        manifest("CloudStackEndpoint", ("spec.systemVMs", UNSET)),
        "inventory Static needs at least one entry in systemVMs",
    ),
    "Static with an empty list": (
        manifest("CloudStackEndpoint", ("spec.systemVMs", [])),
        "inventory Static needs at least one entry in systemVMs",
    ),
    "names that differ in case only": (
        manifest(
            "CloudStackEndpoint",
            (
                "spec.systemVMs",
                [{"name": n, "type": "router", "address": "192.0.2.1"} for n in ("r-1-VM", "s-1-VM", "R-1-vm")],
            ),
        ),
        "must differ in more than upper and lower case",
    ),
    "the same name twice": (
        manifest("CloudStackEndpoint", ("spec.systemVMs", [*SPECS["CloudStackEndpoint"]["systemVMs"]] * 2)),
        "Duplicate value",
    ),
    "name of a VM that Kubernetes cannot have": (
        manifest("CloudStackEndpoint", (f"{VM}.name", "r..1")),
        "must be the name of a VM",
    ),
    "address with a user": (
        manifest("CloudStackEndpoint", (f"{VM}.address", "root@192.0.2.11")),
        "must be an IP address or a host name",
    ),
    "address with a port": (
        manifest("CloudStackEndpoint", (f"{VM}.address", "192.0.2.11:3922")),
        "must be an IP address or a host name, without a port",
    ),
    "Strict without known hosts": (
        manifest("CloudStackEndpoint", ("spec.ssh.hostKeys", {"policy": "Strict"})),
        "policy Strict needs knownHostsRef",
    ),
    "a route through hosts without a login": (
        manifest("CloudStackEndpoint", ("spec.ssh.routes", [{"via": "Host"}])),
        "via Host needs jump, and via Direct has none",
    ),
    "a direct route with a login": (
        manifest("CloudStackEndpoint", ("spec.ssh.routes", [{"via": "Direct", "jump": JUMP}])),
        "via Host needs jump, and via Direct has none",
    ),
    "VMs without a route": (
        manifest("CloudStackEndpoint", ("spec.ssh.routes", [{"hypervisors": ["KVM"], "via": "Host", "jump": JUMP}])),
        "the last of routes must be for all hypervisors",
    ),
    "hosts that anybody could be": (
        manifest(
            "CloudStackEndpoint",
            ("spec.ssh.routes", [{"via": "Host", "jump": {"keySecretRef": JUMP["keySecretRef"]}}]),
        ),
        "spec.ssh.routes[0].jump.knownHostsRef: Required value",
    ),
    "port out of range": (manifest("CloudStackEndpoint", ("spec.ssh.port", 70000)), "less than or equal to 65535"),
    "scan too often": (manifest("CloudStackEndpoint", ("spec.scan.interval", "5s")), "must be at least 10s"),
    "comparison too often": (manifest("CloudStackEndpoint", ("spec.scan.content", "59s")), "must be at least 1m"),
    "no duration": (manifest("CloudStackEndpoint", ("spec.scan.interval", "1d")), "such as 30s, 10m or 1h30m"),
    "step longer than the whole": (
        manifest("PatchPolicy", ("spec.strategy.timeouts", {"step": "20m", "vm": "10m"})),
        "vm must not be shorter than step",
    ),
    "wave after the rest": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "a"}, {"name": "b"}])),
        "every other wave needs one",
    ),
    "last wave with a limit": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "a", "limit": 1}, {"name": "b", "limit": "100%"}])),
        "the last wave takes the rest and has no limit",
    ),
    "two waves of one name": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "a", "limit": 1}, {"name": "a"}])),
        "Duplicate value",
    ),
    "no wave": (manifest("PatchPolicy", ("spec.strategy.waves", [])), "should have at least 1 items"),
    "seventeen waves": (
        manifest(
            "PatchPolicy", ("spec.strategy.waves", [{"name": f"w{n}", "limit": 1} for n in range(16)] + [{"name": "r"}])
        ),
        "must have at most 16 items",
    ),
    "wave of zero": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "a", "limit": 0}, {"name": "b"}])),
        AMOUNT,
    ),
    "wave that nobody can write": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "Rest of it"}])),
        "must be lower case letters",
    ),
    "soak of a month": (
        manifest("PatchPolicy", ("spec.strategy.waves", [{"name": "a", "soak": "720h"}])),
        "at most 168h",
    ),
    "budget that can never be spent": (
        manifest("PatchPolicy", ("spec.strategy", {"failureBudget": {"perWave": 2}})),
        "can never proceed: failed VMs go on counting against maxUnavailable",
    ),
    "wave budget above the total": (
        manifest("PatchPolicy", ("spec.strategy", {"maxUnavailable": 9, "failureBudget": {"perWave": 3, "total": 2}})),
        "total would always be spent first",
    ),
    "consecutive budget above the total": (
        manifest("PatchPolicy", ("spec.strategy.failureBudget", {"total": 2, "consecutive": 3})),
        "consecutive must not be more than total",
    ),
    "approval before a wave that is not there": (
        manifest("PatchPolicy", ("spec.approval", {"before": ["rest", "tenth"]})),
        "approval.before must name waves of strategy.waves",
    ),
    "way back without a backup": (
        manifest("PatchPolicy", ("spec.livePatch", {"keepBackups": 0}), ("spec.strategy.onBudgetSpent", "RollBack")),
        "onBudgetSpent RollBack needs livePatch.keepBackups of at least 1",
    ),
    "retry of a failure that changes a VM": (
        manifest("PatchPolicy", ("spec.strategy.retry", {"reasons": ["VerifyFailed"]})),
        'supported values: "SSHUnreachable"',
    ),
    "settling for too long": (manifest("PatchPolicy", ("spec.checks.settle", "6m")), "must be at most 5m"),
    "name that no object can have": (
        manifest("PatchPolicy", ("spec.endpointRef.name", "Prod_1")),
        "must be the name of an object",
    ),
    "fingerprint of another kind": (
        manifest("SystemVM", ("spec.acceptHostKey", "MD5:11:22")),
        "as ssh-keygen -l shows it",
    ),
    "window that is neither": (window(("spec.schedule", UNSET)), "exactly one of schedule and interval is needed"),
    "window that is both": (window(("spec.interval", ONCE)), "exactly one of schedule and interval is needed"),
    "window without an effect": (window(("spec.effect", UNSET)), "spec.effect: Required value"),
    "window of every hour": (
        window(("rrule", "FREQ=HOURLY;BYDAY=MO")),
        "FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY",
    ),
    "rule with a time of day": (window(("rrule", "FREQ=DAILY;BYHOUR=22")), "the time of day is start"),
    "rule in small letters": (window(("rrule", "freq=weekly;byday=mo")), "in capital letters"),
    "rule without a frequency": (window(("rrule", "BYDAY=MO;COUNT=3")), "FREQ must be DAILY"),
    "rule that is too long": (window(("rrule", "FREQ=DAILY;BYYEARDAY=" + "1," * 130)), "may not be more than 256"),
    "interval of nothing to count from": (
        window(("rrule", "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO")),
        "what would it count from?",
    ),
    "count of nothing to count from": (window(("rrule", "FREQ=DAILY;COUNT=3")), "what would it count from?"),
    "rule that names no days": (window(("rrule", "FREQ=MONTHLY")), "needs startDate: it falls on the same day as that"),
    "a month named, no day": (window(("rrule", "FREQ=YEARLY;BYMONTH=6")), "needs startDate"),
    "time of day of tomorrow": (window(("start", "24:00")), "must be a time of day from 00:00 to 23:59"),
    "time of day of one digit": (window(("start", "9:00")), "must be a time of day from 00:00 to 23:59"),
    "day that is none": (window(("startDate", "2026-02-30")), "must be of type date"),
    "day of another century": (window(("startDate", "1999-12-31")), "must be a day from 2000-01-01 to 2099-12-31"),
    "window of a moment": (window(("duration", "59s")), "must be at least 1m"),
    "window of more than a month": (window(("duration", "744h1s")), "must be at most 744h"),
    "offset instead of a time zone": (window(("timeZone", "+02:00")), "must be a name such as Europe/Amsterdam or UTC"),
    "interval that ends before it begins": (
        window(("spec.schedule", UNSET), ("spec.interval", {"from": ONCE["to"], "to": ONCE["from"]})),
        "to must be later than from",
    ),
    "interval of nothing": (
        window(("spec.schedule", UNSET), ("spec.interval", {"from": ONCE["to"], "to": ONCE["to"]})),
        "to must be later than from",
    ),
    "cutoff as long as the window": (window(("spec.cutoff", "6h")), "cutoff must be shorter than the window"),
    "cutoff as long as the interval": (
        window(("spec.schedule", UNSET), ("spec.interval", ONCE), ("spec.cutoff", "24h")),
        "cutoff must be shorter than the window",
    ),
    "cutoff of a freeze": (window(("spec.effect", "Deny"), ("spec.cutoff", "5m")), "a freeze begins when it begins"),
    "freeze that rolls back": (
        window(("spec.effect", "Deny"), ("spec.atEnd", "RollBack")),
        "a freeze lets VMs in work finish",
    ),
    "window that selects policies": (
        window(("spec.policySelector", {})),
        "an Allow window counts for the policies that name it in windowRefs",
    ),
    "selector without values": (
        window(
            ("spec.effect", "Deny"), ("spec.policySelector", {"matchExpressions": [{"key": "team", "operator": "In"}]})
        ),
        "In and NotIn need values",
    ),
    "selector with values too many": (
        window(
            ("spec.effect", "Deny"),
            ("spec.policySelector", {"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}),
        ),
        "Exists and DoesNotExist have none",
    ),
    "selector by what is no label": (
        window(
            ("spec.effect", "Deny"),
            ("spec.policySelector", {"matchExpressions": [{"key": "a b", "operator": "Exists"}]}),
        ),
        "must be the key of a label",
    ),
    "window named twice": (
        manifest("PatchPolicy", ("spec.windowRefs", [{"name": "nights"}, {"name": "nights"}])),
        "Duplicate value",
    ),
    "too many windows": (
        manifest("PatchPolicy", ("spec.windowRefs", [{"name": f"w{n}"} for n in range(17)])),
        "must have at most 16 items",
    ),
    "hold without a reason": (manifest("SystemVM", ("spec.hold", {})), "spec.hold.reason: Required value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_manifest_is_refused_with_a_sentence(control_plane: ControlPlane, case: str) -> None:
    content, sentence = REFUSED[case]
    said = Server(control_plane, "default").refusal("create", content)
    assert sentence in said
    assert "evaluating rule" not in said, "a rule failed instead of answering"


@pytest.mark.parametrize("zone", ["Europe/Amstredam", "Mars/Olympus", "CEST"])
def test_a_time_zone_that_nobody_knows_is_refused(server: Server, zone: str) -> None:
    """The rule ends in an error of the server's own database; its sentence is shown beside that."""
    assert "must be a time zone of the IANA database" in server.refusal("create", window(("timeZone", zone)))


@pytest.mark.parametrize("zone", ["Europe/Amsterdam", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "UTC", "EST5EDT"])
def test_a_time_zone_has_the_name_of_the_database(server: Server, zone: str) -> None:
    server.create(window(("timeZone", zone)))


@pytest.mark.parametrize(
    "edits",
    [
        [("rrule", "FREQ=WEEKLY;INTERVAL=2"), ("startDate", "2026-01-05")],
        [("rrule", "FREQ=DAILY")],
        [("rrule", "FREQ=MONTHLY;BYDAY=-1SU")],
        [("rrule", "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;UNTIL=20261231")],
        [("rrule", "FREQ=YEARLY;BYMONTH=12;BYMONTHDAY=15"), ("duration", "744h"), ("spec.effect", "Deny")],
        [("spec.cutoff", "5h59m59s"), ("spec.atEnd", "RollBack")],
        [("spec.schedule", UNSET), ("spec.interval", ONCE), ("spec.cutoff", "23h59m")],
        [("spec.effect", "Deny"), ("spec.policySelector", {"matchLabels": {"team": "net"}})],
        [("spec.effect", "Deny"), ("spec.policySelector", {})],
        [
            ("spec.effect", "Deny"),
            (
                "spec.policySelector",
                {
                    "matchExpressions": [
                        {"key": "example.com/team", "operator": "NotIn", "values": ["net", ""]},
                        {"key": "tier", "operator": "DoesNotExist"},
                    ]
                },
            ),
        ],
    ],
    ids=lambda edits: " ".join("unset" if value is UNSET else str(value) for _, value in edits),
)
def test_a_window_that_makes_sense_is_accepted(server: Server, edits: list[tuple[str, object]]) -> None:
    server.create(window(*edits))


EDITS: dict[str, tuple[str, str, object, str]] = {
    "version of a release": ("SystemVMTemplate", "spec.version", "4.20.3", "create a new SystemVMTemplate"),
    "payload of a release": (
        "SystemVMTemplate",
        "spec.payload.files.scripts.digest",
        f"sha256:{'b' * 64}",
        "create a new SystemVMTemplate",
    ),
    "agent added to a release": (
        "SystemVMTemplate",
        "spec.payload.files.agent",
        {"digest": DIGEST, "source": {"mounted": {"path": "agent.zip"}}},
        "version and payload of a release cannot be changed",
    ),
    "revision of a rollout": ("Rollout", "spec.revision", "f" * 64, "a rollout cannot be edited, only its state"),
    "limits of a rollout": (
        "Rollout",
        "spec.snapshot.strategy.maxUnavailable",
        "100%",
        "change the policy instead",
    ),
    "endpoint of a system VM": ("SystemVM", "spec.endpointRef.name", "other", "endpointRef cannot be changed"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_is_decided_cannot_be_edited(server: Server, case: str) -> None:
    kind, path, value, sentence = EDITS[case]
    server.create(manifest(kind))
    assert sentence in server.refusal("replace", manifest(kind, (path, value)))


@pytest.mark.parametrize(
    "payload",
    [
        {"package": PACKAGE},
        {"host": {}},
        {"host": {"expect": DIGEST}},
        {"managementServer": SERVERS},
        {"files": {"scripts": {"digest": DIGEST, "source": {"oci": {"ref": "registry.example.com:5000/cloud/agent"}}}}},
        {
            "files": {
                "scripts": {
                    "digest": DIGEST,
                    "source": {
                        "oci": {
                            "ref": f"localhost:5000/agent:4.20.2@{DIGEST}",
                            "credentialsSecretRef": {"name": "registry"},
                        }
                    },
                }
            }
        },
    ],
    ids=lambda payload: json.dumps(payload)[:60],
)
def test_every_source_of_a_payload_is_accepted_and_then_stays(server: Server, payload: Manifest) -> None:
    server.create(manifest("SystemVMTemplate", ("spec.payload", payload)))
    stored = server.get("svt", "x")["spec"]["payload"]
    assert payload.keys() == stored.keys()
    other = {"package": PACKAGE | {"url": "https://packages.example.com/other.deb"}}
    said = server.refusal("replace", manifest("SystemVMTemplate", ("spec.payload", other)))
    assert "create a new SystemVMTemplate" in said


@pytest.mark.parametrize(
    "url",
    [
        "https://cloud.example.com/client/api",
        "http://192.0.2.5:8080/client/api",
        "https://[2001:db8::1]:8443/client/api",
        "https://cloud8096.example.com:18096/8096/client/api",
    ],
)
def test_an_api_has_the_url_that_people_use_and_gets_its_defaults(server: Server, url: str) -> None:
    stored = server.create(cloud(url=url))["spec"]["api"]
    assert stored["url"] == url
    assert stored["timeout"] == "30s"
    assert stored["limits"] == {"requestsPerSecond": 5, "burst": 10, "asyncJobs": 4}


@pytest.mark.parametrize("address", ["192.0.2.11", "2001:db8::11", "r-101.example.com", "edge-1"])
def test_an_address_may_be_of_either_family_or_a_name(server: Server, address: str) -> None:
    server.create(manifest("CloudStackEndpoint", (f"{VM}.address", address)))


def test_what_may_be_edited_of_a_release_can_be(server: Server) -> None:
    server.create(manifest("SystemVMTemplate"))
    server.kubectl("patch", "svt", "x", "--type=merge", "-p", '{"metadata": {"labels": {"a": "b"}}}')
    rows = [{"from": ">=4.18", "to": ">=4.20", "supported": True}]
    patch = json.dumps({"spec": {"livePatch": {"compatibility": rows}}})
    server.kubectl("patch", "svt", "x", "--type=merge", "-p", patch)
    assert server.get("svt", "x")["spec"]["livePatch"]["compatibility"] == rows


def test_images_of_all_hypervisors_stay_within_the_cost_of_their_rules(server: Server) -> None:
    kinds = [
        (one, arch)
        for one in ("KVM", "VMware", "XenServer", "Hyperv", "LXC")
        for arch in ("x86_64", "aarch64", "s390x")
    ]
    items = [
        {**IMAGE, "hypervisor": one, "arch": arch, "name": f"systemvm-{one.lower()}-4.20.2-{arch}-{'x' * 40}"}
        for one, arch in kinds
    ]
    made = server.create(
        images(*items, {**IMAGE, "hypervisor": "Ovm3", "name": "systemvm-ovm3-4.20.2"}, mode="Register")
    )
    assert len(made["spec"]["images"]["items"]) == 16


def test_images_can_be_edited_and_the_release_cannot(server: Server) -> None:
    server.create(images(IMAGE))
    edited = images(
        {**IMAGE, "arch": "aarch64", "name": "systemvm-kvm-4.20.2-aarch64"}, IMAGE, acceptPromotion="8c1f03ab"
    )
    server.kubectl("patch", "svt", "x", "--type=merge", "-p", json.dumps({"spec": edited["spec"]}))
    assert len(server.get("svt", "x")["spec"]["images"]["items"]) == 2


def test_a_person_can_accept_another_cloud_for_a_rollout(server: Server) -> None:
    server.create(manifest("Rollout"))
    server.kubectl("patch", "svr", "x", "--type=merge", "-p", '{"spec": {"acceptCloud": "8c1f03ab"}}')
    assert server.get("svr", "x")["spec"]["acceptCloud"] == "8c1f03ab"


def test_a_rollout_can_be_paused_and_resumed_but_not_after_it_was_aborted(server: Server) -> None:
    server.create(manifest("Rollout"))
    for state in ("Paused", "Running", "Aborted"):
        server.kubectl("patch", "svr", "x", "--type=merge", "-p", json.dumps({"spec": {"state": state}}))
        assert server.get("svr", "x")["spec"]["state"] == state
    for state in ("Running", "Paused"):
        said = server.refusal("replace", manifest("Rollout", ("spec.state", state)))
        assert "an aborted rollout cannot be resumed" in said


def test_a_release_can_be_deleted_and_made_again_with_another_payload(server: Server) -> None:
    server.create(manifest("SystemVMTemplate"))
    server.kubectl("delete", "svt", "x")
    server.create(manifest("SystemVMTemplate", ("spec.version", "4.20.3")))


@pytest.mark.parametrize("count", [200, 500], ids=["most with compared names", "most"])
def test_an_endpoint_of_many_vms_stays_within_the_cost_of_its_rules(server: Server, count: int) -> None:
    names = (f"r-{n:03}-{'V' * 57}" for n in range(count))
    vms = [{"name": name, "type": "router", "address": f"192.0.2.{n % 250}"} for n, name in enumerate(names)]
    made = server.create(manifest("CloudStackEndpoint", ("spec.systemVMs", vms), name="e" * 40))
    assert len(made["spec"]["systemVMs"]) == count


def test_the_largest_release_and_rollout_stay_within_the_cost_of_their_rules(server: Server) -> None:
    versions = ", ".join([">=14444.20.1.1"] * 4)
    rows = [{"from": versions, "to": versions, "supported": True, "reason": "x" * 253}] * 32
    server.create(manifest("SystemVMTemplate", ("spec.livePatch", {"compatibility": rows})))
    ignored = [f"{n:0128}" for n in range(32)]
    server.create(manifest("Rollout", ("spec.snapshot.checks", {"ignore": ignored})))
    for kind in ("svt", "svr"):
        server.kubectl("label", kind, "x", "changed=yes")


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@every_kind
def test_the_server_fills_the_defaults_of_the_models(server: Server, kind: Kind) -> None:
    content = manifest(kind.name)
    filled = server.create(content)["spec"]
    assert kind.model.model_validate({**content, "spec": filled}) == kind.model.model_validate(content)
    written = kind.model.model_validate(content).model_dump(mode="json", exclude_none=True)["spec"]
    assert _without_empty(filled) == _without_empty(written)


@every_kind
def test_a_partly_written_object_is_filled_up(server: Server, kind: Kind) -> None:
    partly: dict[str, list[tuple[str, Any]]] = {
        "CloudStackEndpoint": [("spec.ssh.limits", {}), ("spec.scan", {"interval": "1m"}), ("spec.ssh.hostKeys", {})],
        "SystemVMTemplate": [("spec.livePatch", {})],
        "PatchPolicy": [("spec.strategy", {"perHost": 1, "timeouts": {"vm": "20m"}}), ("spec.checks", {})],
        "SystemVM": [("spec.hold", {"reason": "CHG-881"})],
        "Rollout": [("spec.snapshot.strategy", {"maxUnavailable": "5%"})],
        "RolloutApproval": [],
        "MaintenanceWindow": [("spec.cutoff", "45m")],
    }
    content = manifest(kind.name, *partly[kind.name])
    filled = server.create(content)["spec"]
    written = kind.model.model_validate(content).model_dump(mode="json", exclude_none=True)["spec"]
    assert _without_empty(filled) == _without_empty(written)


def _without_empty(value: Any) -> Any:
    """Absent and empty mean the same; the server writes neither empty lists nor empty texts."""
    if isinstance(value, dict):
        parts = {name: _without_empty(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part not in ("", [], {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


@every_kind
def test_an_object_that_no_operator_has_seen_is_not_ready(server: Server, kind: Kind) -> None:
    server.create(manifest(kind.name))
    assert server.get(kind.plural, "x")["status"].items() >= PENDING_STATUS.items()
    wait = server.control_plane.try_kubectl(
        "wait", f"--namespace={server.namespace}", "--for=condition=Ready", "--timeout=1s", f"{kind.plural}/x"
    )
    assert wait.returncode != 0
    assert "timed out waiting for the condition" in wait.stderr


@every_kind
def test_a_status_is_written_only_through_its_own_resource(server: Server, kind: Kind) -> None:
    ready = {"type": "Ready", "status": "True", "reason": "Forged", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    made = server.create({**manifest(kind.name), "status": {"observedGeneration": 1, "conditions": [ready]}})
    assert made["status"]["conditions"][0]["reason"] == "Pending"
    patch = json.dumps({"status": {"conditions": [ready]}})
    server.kubectl("patch", kind.plural, "x", "--type=merge", "-p", patch)
    assert server.get(kind.plural, "x")["status"]["conditions"][0]["reason"] == "Pending"
    server.set_status(kind.plural, "x", {"observedGeneration": 1, "conditions": [ready]})
    assert server.get(kind.plural, "x")["status"]["conditions"][0]["reason"] == "Forged"
    server.kubectl("wait", "--for=condition=Ready", "--timeout=5s", f"{kind.plural}/x")


def test_system_vms_are_found_by_what_they_are_and_do(server: Server) -> None:
    for name, endpoint, zone, state in (("a", "prod", "ams-1", "Converged"), ("b", "lab", "ams-2", "Outdated")):
        order = {"id": f"op-{name}", "rollout": f"run-{name}", "method": "LivePatch", "revision": "r", "epoch": 1}
        server.create(
            manifest(
                "SystemVM",
                ("spec.endpointRef.name", endpoint),
                ("spec.operation", {**order, "template": "t"}),
                name=name,
            )
        )
        identity = {"name": name, "type": "router", "zone": zone, "host": f"host-{name}", "address": "192.0.2.1"}
        plan = {"policy": "p", "revision": "r", "method": {"a": "None", "b": "Hold"}[name], "reason": "UpToDate"}
        server.set_status("svm", name, {"state": state, "identity": identity, "plan": plan})
    kind = next(kind for kind in KINDS if kind.name == "SystemVM")
    both = {path: server.kubectl("get", "svm", "-o", f"jsonpath={{.items[*]{path}}}").split() for path in _paths(kind)}
    for path, (of_a, of_b) in both.items():
        for value, names in ((of_a, "a"), (of_b, "b")):
            expected = "a b" if of_a == of_b else names
            selector = f"--field-selector={path.removeprefix('.')}={value}"
            assert server.kubectl("get", "svm", selector, "-o", "jsonpath={.items[*].metadata.name}") == expected, path


def test_rollouts_are_found_by_policy_and_endpoint(server: Server) -> None:
    for name in ("a", "b"):
        edits = (("spec.policyRef.name", f"policy-{name}"), ("spec.endpointRef.name", f"endpoint-{name}"))
        server.create(manifest("Rollout", *edits, name=name))
    for selector in ("spec.policyRef.name=policy-b", "spec.endpointRef.name=endpoint-b"):
        found = server.kubectl("get", "svr", f"--field-selector={selector}", "-o", "jsonpath={.items[*].metadata.name}")
        assert found == "b"


def _paths(kind: Kind) -> tuple[str, ...]:
    return kind.selectable_fields


def _condition(status: str, reason: str, message: str) -> Manifest:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


IN_WORK: dict[str, Manifest] = {
    "CloudStackEndpoint": {
        "counts": {"systemVMs": 4, "unreachable": 1},
        "conditions": [_condition("False", "VMsUnreachable", "r-104-VM does not answer")],
    },
    "SystemVMTemplate": {
        "revision": "8c1f03ab" * 8,
        "files": 188,
        "conditions": [_condition("True", "PayloadReady", "188 files")],
    },
    "PatchPolicy": {
        "counts": {"total": 4, "applicable": 4, "converged": 1, "updating": 1, "waiting": 2},
        "progress": {"done": 1, "of": 4, "summary": "1/4"},
        "lastRollout": {"name": "routers-8c1f03ab-1", "number": 1, "revision": "8c1f03ab" * 8},
        "conditions": [_condition("False", "RollingOut", "1 of 4 at 8c1f03ab")],
    },
    "SystemVM": {
        "state": "Updating",
        "identity": {"name": "r-101-VM", "type": "router", "host": "rack-3", "address": "192.0.2.11"},
        "redundancy": {"role": "BACKUP", "observedAt": "2026-01-01T00:00:00Z"},
        "observed": {"at": "2026-01-01T00:00:00Z", "template": {"version": "4.20.1"}},
        "plan": {"policy": "routers", "revision": "r", "method": "LivePatch", "reason": "ScriptsOutdated"},
        "operation": {
            "id": "op-1",
            "method": "LivePatch",
            "revision": "r",
            "step": "Stage",
            "startedAt": "2026-01-01T00:00:00Z",
        },
        "conditions": [_condition("False", "InWork", "Stage: 11 files")],
    },
    "Rollout": {
        "phase": "Running",
        "summary": "1/4",
        "conditions": [_condition("False", "RollingOut", "1 of 4")],
    },
    "RolloutApproval": {"conditions": [_condition("True", "Approved", "opens wave rest")]},
    "MaintenanceWindow": {
        "open": True,
        "nextOpen": "2026-11-24T21:00:00Z",
        "nextClose": "2026-11-24T03:00:00Z",
        "conditions": [_condition("True", "Open", "open until 2026-11-24T03:00:00Z")],
    },
}


def test_kubectl_get_says_whether_it_is_done_what_it_does_and_why_it_waits(server: Server) -> None:
    """Before and in the middle of work, as in golden/kubectl-get.txt (ages are left out)."""
    shown = []
    for kind in KINDS:
        server.create(manifest(kind.name, name="x"))
        server.create(manifest(kind.name, name="y"))
        server.set_status(kind.plural, "y", IN_WORK[kind.name])
        for flags in ((), ("-o", "wide")):
            listed = server.kubectl("get", kind.short_name, *flags)
            shown += [f"$ kubectl get {' '.join((kind.short_name, *flags))}", *_without_ages(listed), ""]
    text = "\n".join(shown)
    golden = GOLDEN / "kubectl-get.txt"
    assert text == golden.read_text(), f"if the change is meant, let {golden} say so:\n{text}"


def _without_ages(listed: str) -> list[str]:
    """Lines with an age of as many characters as its heading, so that columns stay where they are."""
    lines = listed.splitlines()
    start = re.search(r"\bAGE\b", lines[0])
    assert start is not None
    at = start.start()
    aged = [re.sub(r"^\S+ *", lambda age: "-".ljust(len(age[0])), line[at:], count=1) for line in lines[1:]]
    bodies = [lines[0], *(line[:at] + rest for line, rest in zip(lines[1:], aged, strict=True))]
    return [line.rstrip() for line in bodies]


def test_one_word_lists_all_kinds(server: Server) -> None:
    for kind in KINDS:
        server.create(manifest(kind.name))
    listed = server.kubectl("get", "cloudstack", "-o", "name").split()
    assert {line.split("/")[0] for line in listed} == {f"{kind.name.lower()}.sysvm.io" for kind in KINDS}


def test_kubectl_explain_shows_the_choices(server: Server) -> None:
    said = server.kubectl("explain", "cse.spec.management")
    assert "change nothing" in said
    assert "Observe" in said
    assert "Full" in said


def test_every_yaml_of_the_documentation_is_accepted(server: Server) -> None:
    documents = list(documented())
    assert len(documents) >= 7
    for where, text in documents:
        result = server.control_plane.try_kubectl(
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            f"--namespace={server.namespace}",
            "-f",
            "-",
            stdin=text,
        )
        assert result.returncode == 0, f"{where}: {result.stderr}"
        assert "Warning" not in result.stderr, f"{where}: {result.stderr}"


def documented() -> list[tuple[str, str]]:
    """Every YAML file below docs/ and every fenced block of YAML with a `kind` in docs/ and the README."""
    found = [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / "docs").rglob("*.yaml"))]
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^```ya?ml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        found += [(f"{path.relative_to(ROOT)}, block {n}", block) for n, block in enumerate(blocks, 1)]
    return [(where, text) for where, text in found if _is_manifest(text)]


def _is_manifest(text: str) -> bool:
    """Not the values of a chart."""
    return all(isinstance(document, dict) and "kind" in document for document in yaml.safe_load_all(text) if document)
