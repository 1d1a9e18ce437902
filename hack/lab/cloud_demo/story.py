"""The acts of the cloud's story, told while they happen."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import demo
from lab.cloud.process import CloudProcess
from lab.cloud_demo import objects
from lab.cloud_demo.counting import HOW_COUNTED, CallRecord, Phase, own_way, table
from lab.cloud_demo.objects import BALANCERS, ENDPOINT, REDUNDANT, SINGLE, SYSTEM_VMS
from lab.cloud_demo.traffic import Asking, asking
from lab.content import payloads, releases
from lab.content.releases import Release
from lab.controlplane import ControlPlane
from lab.demo import NAMESPACE, DemoError, Say, Stage, Telling, indented, wait_condition
from lab.hosts import Hosts
from lab.machines import Lab

POLL_SECONDS = 0.5
PATCH_SECONDS = 300.0
QUIET_SECONDS = 10.0
VMS = 12
ANEW = ["LivePatch", "Recreate"]
PLAN_COLUMNS = (
    "custom-columns=VM:.status.identity.name,TYPE:.status.identity.type,METHOD:.status.plan.method,"
    "ROUTE:.status.plan.route,REASON:.status.plan.reason,SERVICES:.status.plan.services[*].name,"
    "ACTIONS:.status.plan.services[*].action"
)

Manifest = dict[str, Any]


class CloudStory(Telling):
    """The whole of it; `tell` is the demo, and a test may take single acts in their order."""

    def __init__(self, run_dir: Path, say: Say, show: Say) -> None:
        super().__init__(run_dir, say, show)
        self.phases: list[Phase] = []
        self.stage: Stage
        self.cloud: CloudProcess
        self._record: CallRecord
        self._names: dict[str, str] = {}
        self._waiting: Mapping[str, Mapping[str, object]] = {}

    def tell(self) -> None:
        """From nothing to the table. The cloud stays up, to be looked at."""
        self.raise_cloud()
        self.find()
        self.plan(releases.new())
        self.patch()
        self.upgrade(releases.mended())
        self.follow()
        self.recreate_system_vms()
        self.nothing_else()
        self.summary()

    # -- 1. a cloud, found -----------------------------------------------------------------------------------------

    def raise_cloud(self) -> None:
        self._heading("1. A cloud at release 4.20.1: management server, three hosts in two zones, twelve system VMs")
        lab = Lab(self._run_dir, say=self._say)
        with ThreadPoolExecutor(1) as beside:
            server = beside.submit(ControlPlane.start, self._run_dir / "control-plane", progress=self._say)
            lab.up([], release="old")
            self.cloud = CloudProcess.start(lab, "old")
            self.stage = Stage(lab=lab, server=server.result(), run_dir=self._run_dir, say=self._say)
        self._record = CallRecord(self.cloud)
        self._say(f"API server {self.stage.server.url}, CloudStack API (stand-in) {self.cloud.url}")
        self._say("installing the chart's objects and starting the operator with its service account")
        demo.start_operator(self.stage)

    def find(self) -> None:
        self._heading("2. kubectl apply: an endpoint. Its VMs are found, and looked at through their hosts")
        with self._phase("found and looked at", changes=False):
            self._apply(
                self.stage,
                *objects.keys(self.stage.lab, self.cloud, NAMESPACE),
                objects.endpoint(self.cloud, NAMESPACE, management="Observe"),
            )
            wait_condition(self.stage, "cse", ENDPOINT, "Ready", seconds=120)
            self._until(self._all_seen, "all twelve VMs were looked at", seconds=120)
        self._table(self.stage, "cse,svm")

    # -- 2. planned, then patched ----------------------------------------------------------------------------------

    def plan(self, release: Release) -> None:
        self._heading(f"3. A maintenance release, {release.version}: packages on server and hosts, the template stays")
        names = [str(vm["status"]["identity"]["name"]) for vm in self.vms() if _waits(vm)]
        self._waiting = self._snapshots(self.stage, names)
        self._install(release, template=False)
        self._apply(self.stage, objects.template(release, NAMESPACE), *objects.policies(release, NAMESPACE))
        wait_condition(self.stage, "svt", objects.template_name(release), "Ready", seconds=60)
        self._until(lambda: all(map(_planned, self.vms())), "all VMs have a plan", seconds=60)
        self._show("The endpoint only observes, so this is what would be done, and nothing is:")
        self._table(self.stage, "svm", "-o", PLAN_COLUMNS)
        self._table(self.stage, "svt,spp,svr")

    def patch(self) -> None:
        self._heading("4. management: Full. System VMs, then pairs, then single routers, while tenants ask")
        with (
            self._asking("net-1", "net-2", "vpc-1") as tenants,
            self._phase("live patch over SSH", tenants, "net-1", "net-2", "vpc-1"),
        ):
            self._type("patch", f"cse/{ENDPOINT}", "--type=merge", "-p", '{"spec":{"management":"Full"}}')
            for policy in (SYSTEM_VMS, REDUNDANT):
                wait_condition(self.stage, "spp", policy, "Ready", seconds=PATCH_SECONDS)
            soaks = f"{SINGLE} soaks after its canary"
            self._until(lambda: self._ready(SINGLE)[0] == "Soaking", soaks, seconds=PATCH_SECONDS)
            self._until(self._all_compared, "those that were patched were looked at again", seconds=60)
        self._traffic(tenants)
        self._table(self.stage, "svm,spp,svr")
        outdated = {str(vm["status"]["identity"]["name"]) for vm in self.vms() if vm["status"]["state"] == "Outdated"}
        self._show(f"{', '.join(sorted(outdated))} still wait for their wave and their policy:")
        self._untouched(self.stage, {name: self._waiting[name] for name in outdated})

    # -- 3. an upgrade in the middle of a rollout --------------------------------------------------------------------

    def upgrade(self, release: Release) -> None:
        self._heading(f"5. Two VMs still wait for their wave, and an administrator installs {release.version}")
        self._install(release, template=True)
        paused = f"{SINGLE} is paused"
        self._until(lambda: self._ready(SINGLE)[0] == "CloudChanged", paused, seconds=60)
        self._says(SINGLE)
        rollout = str(self.stage.get("spp", SINGLE)["status"]["lastRollout"]["name"])
        self._show("It was planned for another cloud, so it goes on by a person's word only. This one plans anew:")
        self._type("patch", f"svr/{rollout}", "--type=merge", "-p", '{"spec":{"state":"Aborted"}}')
        self._apply(self.stage, objects.template(release, NAMESPACE, image=True))

    def follow(self) -> None:
        """The same policies toward the new release. Routers from the old template are gated now: pairs and the VPC
        are made anew, single routers patched by CloudStack's own call."""
        self._heading("6. One edit, templateRef in all four policies: system VMs, pairs, single routers, balancers")
        release = releases.mended()
        with self._asking("net-1", "net-2", "vpc-1", "net-3") as tenants:
            with self._phase("system VMs, over SSH"):
                for policy in objects.ORDER:
                    spec: Manifest = {"templateRef": {"name": objects.template_name(release)}}
                    if policy == SINGLE:  # half an hour of soak after the canary is what nobody waits for here
                        spec["strategy"] = {"waves": [{"name": "rest"}]}
                    self._edit(policy, spec)
                wait_condition(self.stage, "svt", objects.template_name(release), "Ready", seconds=60)
                wait_condition(self.stage, "spp", SYSTEM_VMS, "Ready", seconds=PATCH_SECONDS)
            self._until(lambda: self._ready(REDUNDANT)[0] == "ManagementGateClosed", "the gate is told", seconds=60)
            self._says(REDUNDANT)
            with self._phase("pairs made anew", tenants, "net-2", "vpc-1"):
                self._edit(REDUNDANT, {"methods": ANEW})
                wait_condition(self.stage, "spp", REDUNDANT, "Ready", seconds=PATCH_SECONDS)
            with self._phase("single routers, CloudStack's patch", tenants, "net-1", "net-3"):
                wait_condition(self.stage, "spp", SINGLE, "Ready", seconds=PATCH_SECONDS)
            with self._phase("load balancer, over SSH"):
                wait_condition(self.stage, "spp", BALANCERS, "Ready", seconds=PATCH_SECONDS)
        self._traffic(tenants)
        self._table(self.stage, "svm,spp,svr")

    # -- 4. what live patch cannot reach ---------------------------------------------------------------------------

    def recreate_system_vms(self) -> None:
        self._heading("7. A live patch never changes the template. Where it must be new, VMs are made anew")
        self._table(self.stage, "svm", "-o", "wide", "--field-selector", "metadata.name=prod-s-9-vm")
        before = {vm["status"]["identity"]["name"] for vm in self._of("secstorage", "zone-1")}
        with self._phase("SSVMs and CPVMs made anew"):
            self._edit(SYSTEM_VMS, {"templateVersion": "Require", "methods": ANEW})
            wait_condition(self.stage, "spp", SYSTEM_VMS, "Ready", seconds=PATCH_SECONDS)
        self._table(self.stage, "svm,spp,svr", "-o", "wide")
        (new,) = self._of("secstorage", "zone-1")
        identity, key = new["status"]["identity"], new["status"]["hostKey"]
        self._show(f"{identity['name']} took the place of {', '.join(before)}; its key {key['fingerprint']} is known.")

    def nothing_else(self) -> None:
        """Every change was one that was told, nobody is left over, and nothing goes on. Raises DemoError."""
        self._heading("8. Nothing else has changed")
        asked = [self._words(call) for phase in self.phases for call in phase.calls.changing]
        self._show(f"All {len(asked)} changing calls that the server let in:\n" + indented("\n".join(asked)))
        if len(set(asked)) < len(asked):
            raise DemoError("something was asked for twice")
        self._until(lambda: self._running() == self._known(), "each VM that runs is known, and no other", seconds=120)
        names = self._running()
        if len(names) != VMS:
            raise DemoError(f"there were {VMS} VMs, and now there are {', '.join(names)}")
        self._all_run(self.stage, names)
        self._hosts_are_as_installed(releases.mended())
        self._until(self._is_quiet, f"{QUIET_SECONDS:.0f} s in which no object was written", seconds=120)
        self._show(
            f"{len(names)} VMs run, as many as at the beginning, and all are known; no service has failed. The hosts"
            f" hold what the\nadministrator installed. For {QUIET_SECONDS:.0f} s no object was written and no change"
            " was asked for."
        )

    def _words(self, call: Mapping[str, str]) -> str:
        command, id_ = call["command"], call.get("id", "")
        rest = [f"{name}={value}" for name, value in call.items() if name not in ("command", "id")]
        return " ".join((command, self._names.get(id_, id_), *rest))

    def _running(self) -> list[str]:
        return sorted(vm.name for vm in self.stage.lab.vms())

    def _known(self) -> list[str]:
        return sorted(str(vm["status"]["identity"]["name"]) for vm in self.vms())

    def _hosts_are_as_installed(self, release: Release) -> None:
        wanted = payloads.build_scripts(release), payloads.build_agent(release)
        for host in Hosts(self.stage.lab).all():
            held = tuple((host.vms_folder / name).read_bytes() for name in ("cloud-scripts.tgz", "agent.zip"))
            if held != wanted:
                raise DemoError(f"{host.name} does not hold what the administrator installed")

    def _is_quiet(self) -> bool:
        """Nothing of ours is written for a while. Raises DemoError if a change is asked for."""
        before = self._written()
        self._record.since_last()
        time.sleep(QUIET_SECONDS)
        calls = self._record.since_last()
        if calls.changing:
            raise DemoError(f"something goes on: {calls.told()}")
        return self._written() == before

    # -- 5. what it cost ---------------------------------------------------------------------------------------------

    def summary(self) -> None:
        self._heading("9. What it cost")
        self._show(table(self.phases))
        self._show(HOW_COUNTED)
        self._show(
            f"\nDone in {time.monotonic() - self._began:.0f} s. The cloud is up; to look around:\n" + LOOK_AROUND
        )

    # -- how it is told --------------------------------------------------------------------------------------------

    def vms(self) -> list[Manifest]:
        """The SystemVMs."""
        found: list[Manifest] = self.stage.get("svm")["items"]
        return found

    def _of(self, type_: str, zone: str) -> list[Manifest]:
        identities = ((vm, vm["status"]["identity"]) for vm in self.vms())
        return [vm for vm, identity in identities if (identity["type"], identity["zone"]) == (type_, zone)]

    def _type(self, *arguments: str) -> str:
        words = [f"'{word}'" if "{" in word else word for word in arguments]
        self._show(f"$ kubectl {' '.join(words)}")
        return self.stage.kubectl(*arguments)

    def _says(self, policy: str) -> None:
        self._show(f"$ kubectl get spp/{policy} -o jsonpath='{{.status.conditions[?(@.type==\"Ready\")].message}}'")
        self._show(indented(self._ready(policy)[1]))

    def _edit(self, policy: str, spec: Manifest) -> None:
        self._type("patch", f"spp/{policy}", "--type=merge", "-p", json.dumps({"spec": spec}))

    def _install(self, release: Release, *, template: bool) -> None:
        """Packages on server and hosts, and a sweep at once, so that nobody waits for the next one."""
        words = [f"release={release.name}", *([] if template else ["template=false"])]
        self._show(f"$ python -m lab cloud upgrade {' '.join(words)}")
        told = self.cloud.tell("upgrade", {"release": release.name, "template": template})
        self._show(indented(json.dumps(told)))
        now = datetime.now(UTC).strftime("%FT%TZ")
        self._type("annotate", "--overwrite", f"cse/{ENDPOINT}", f"sysvm.io/requestedAt={now}")

    @contextlib.contextmanager
    def _asking(self, *owners: str) -> Iterator[Asking]:
        """Tenants of these networks and VPCs ask until the block ends."""
        routers = self._routers(owners)
        with asking(self.stage.lab, routers) as tenants:
            self._say(f"tenants ask through {', '.join(f'{vm} ({name})' for name, vm in routers.items())}")
            yield tenants

    def _traffic(self, tenants: Asking) -> None:
        for line in tenants.lines():
            self._show(f"  {line}")

    @contextlib.contextmanager
    def _phase(self, title: str, tenants: Asking | None = None, *through: str, changes: bool = True) -> Iterator[None]:
        """Counts calls, and VMs that were changed or came; `through`: the networks whose loss belongs to this phase."""
        self._record.since_last()
        began, before = time.monotonic(), {vm["metadata"]["name"]: _operation(vm) for vm in self.vms()}
        self._names |= dict(pair for vm in self.vms() for pair in _named(vm))
        yield
        worked = [vm for vm in self.vms() if _has_ended_since(vm, before)]
        phase = Phase(
            title=title,
            vms=len(worked),
            seconds=time.monotonic() - began,
            calls=self._record.since_last(),
            own=own_way(vm["status"]["identity"] for vm in worked) if changes else None,
            tenants=tenants,
            through=through,
        )
        self.phases.append(phase)
        self._show(f"  {title}: {phase.vms} VMs in {phase.seconds:.0f} s, calls: {phase.calls.told()}")

    def _routers(self, owners: tuple[str, ...]) -> dict[str, str]:
        """One router of each network or VPC."""
        found: dict[str, str] = {}
        for vm in self.vms():
            identity = vm["status"]["identity"]
            for owner in {identity.get("network"), identity.get("vpc")} & set(owners):
                if identity["type"] in ("router", "vpcrouter"):
                    found.setdefault(str(owner), str(identity["name"]))
        missing = set(owners) - set(found)
        if missing:
            raise DemoError(f"no router of {', '.join(sorted(missing))} is known")
        return found

    def _written(self) -> dict[str, str]:
        """resourceVersion of every object of ours, by name."""
        items = json.loads(self.stage.kubectl("get", "cse,svt,svm,spp,svr", "-o", "json"))["items"]
        return {f"{i['kind']}/{i['metadata']['name']}": str(i["metadata"]["resourceVersion"]) for i in items}

    def _all_seen(self) -> bool:
        vms = self.vms()
        return len(vms) == VMS and all(vm.get("status", {}).get("observed", {}).get("signature") for vm in vms)

    def _all_compared(self) -> bool:
        """A soak begins with the end of the last patch; what the look after it finds is known a moment later."""
        return all(vm["status"]["state"] != "Unknown" for vm in self.vms())

    def _ready(self, policy: str) -> tuple[str, str]:
        """Reason and message of its condition Ready."""
        conditions = self.stage.get("spp", policy).get("status", {}).get("conditions", [])
        return next(((str(c["reason"]), str(c["message"])) for c in conditions if c["type"] == "Ready"), ("", ""))

    def _until(self, happens: Callable[[], bool], what: str, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happens():
            if time.monotonic() > deadline:
                log = self.stage.operator_dir / "operator.log"
                picture = self.stage.kubectl("get", "svm,spp,svr", "-o", "wide")
                raise DemoError(f"not within {seconds:.0f} s: {what}. The operator's log is {log}\n{picture}")
            time.sleep(POLL_SECONDS)


LOOK_AROUND = """\
  .venv/bin/python -m lab kubectl -n cloud get svm,spp,svr -o wide
  .venv/bin/python -m lab cloud                                             (its URL, keys and hosts)
  .venv/bin/python -m lab cloud calls                                       (all that was asked of it)
  .venv/bin/python -m lab cloud faults patch=nothing                        (it lies from now on; `faults` heals)
  .venv/bin/python -m lab kubectl -n cloud get events --sort-by=.lastTimestamp
  .venv/bin/python -m lab status
  make demo-down                                                            (takes everything away)"""


def _planned(vm: Manifest) -> bool:
    """Compared with the release; an internal load balancer VM runs none of the services that this one touches."""
    plan, type_ = vm["status"].get("plan", {}), vm["status"]["identity"]["type"]
    return plan.get("method") == "LivePatch" and (type_ == "ilbvm" or bool(plan.get("services")))


def _waits(vm: Manifest) -> bool:
    """Of the policies that come last: single routers and load balancers."""
    identity = vm["status"]["identity"]
    return identity["type"] in ("ilbvm", "dhcpsrvr") or (
        identity["type"] == "router" and "redundancy" not in vm["status"]
    )


def _named(vm: Manifest) -> Iterator[tuple[str, str]]:
    """Ids of the VM and of what it serves, with their names."""
    identity = vm["status"].get("identity", {})
    yield str(identity.get("id")), str(identity.get("name"))
    if identity.get("type") in ("router", "vpcrouter", "dhcpsrvr"):
        yield str(identity.get("group")), str(identity.get("vpc") or identity.get("network"))


def _has_ended_since(vm: Manifest, before: Mapping[str, str]) -> bool:
    """An operation on the VM, or on the one whose place it took. One that has only begun belongs to the next phase."""
    name, operation = vm["metadata"]["name"], _operation(vm)
    return name not in before or operation not in ("", before[name])


def _operation(vm: Manifest) -> str:
    """The last one that ended."""
    operation = vm.get("status", {}).get("operation", {})
    return str(operation.get("id", "")) if operation.get("result") else ""
