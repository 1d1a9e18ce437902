"""The acts of the cloud's story, told while they happen."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
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
from lab.content import releases
from lab.content.releases import Release
from lab.controlplane import ControlPlane
from lab.demo import NAMESPACE, DemoError, Say, Stage, Telling, indented, wait_condition
from lab.machines import Lab

POLL_SECONDS = 0.5
PATCH_SECONDS = 300.0
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

    def tell(self) -> None:
        """From nothing to the table. The cloud stays up, to be looked at."""
        self.raise_cloud()
        self.find()
        self.plan(releases.new())
        self.patch()
        self.upgrade(releases.mended())
        self.follow()
        self.recreate_system_vms()
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
        with self._phase("found and looked at"):
            self._apply(
                self.stage,
                *objects.keys(self.stage.lab, self.cloud, NAMESPACE),
                objects.endpoint(self.cloud, NAMESPACE, management="Observe"),
            )
            wait_condition(self.stage, "cse", ENDPOINT, "Ready", seconds=120)
            self._until(self._all_seen, "all twelve VMs were looked at", seconds=120)
        self._table(self.stage, "cse,svm")
        self._show(f"All twelve in {self.phases[-1].calls.told()} calls.")

    # -- 2. planned, then patched ----------------------------------------------------------------------------------

    def plan(self, release: Release) -> None:
        self._heading(f"3. A maintenance release, {release.version}: packages on server and hosts, the template stays")
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
        self._traffic(tenants)
        self._table(self.stage, "svm,spp,svr")

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
        wait_condition(self.stage, "svt", objects.template_name(release), "Ready", seconds=60)
        self._table(self.stage, "svt")

    def follow(self) -> None:
        """The same policies toward the new release. Routers from the old template are gated now: pairs and the VPC
        are made anew, single routers patched by CloudStack's own call."""
        self._heading("6. One edit, templateRef in all four policies: system VMs, pairs, single routers, balancers")
        release = releases.mended()
        with self._asking("net-1", "net-2", "vpc-1", "net-3") as tenants:
            with self._phase("system VMs, over SSH"):
                for policy in objects.ORDER:
                    reference = json.dumps({"spec": {"templateRef": {"name": objects.template_name(release)}}})
                    self._type("patch", f"spp/{policy}", "--type=merge", "-p", reference)
                wait_condition(self.stage, "spp", SYSTEM_VMS, "Ready", seconds=PATCH_SECONDS)
            self._until(lambda: self._ready(REDUNDANT)[0] == "ManagementGateClosed", "the gate is told", seconds=60)
            self._says(REDUNDANT)
            with self._phase("pairs made anew", tenants, "net-2", "vpc-1"):
                self._allow_anew(REDUNDANT)
                wait_condition(self.stage, "spp", REDUNDANT, "Ready", seconds=PATCH_SECONDS)
            with self._phase("single routers, CloudStack's patch", tenants, "net-1", "net-3"):
                self._skip_the_soak(SINGLE)
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
            spec = json.dumps({"spec": {"templateVersion": "Require", "methods": ANEW}})
            self._type("patch", f"spp/{SYSTEM_VMS}", "--type=merge", "-p", spec)
            wait_condition(self.stage, "spp", SYSTEM_VMS, "Ready", seconds=PATCH_SECONDS)
        self._table(self.stage, "svm,spp,svr", "-o", "wide")
        (new,) = self._of("secstorage", "zone-1")
        identity, key = new["status"]["identity"], new["status"]["hostKey"]
        self._show(f"{identity['name']} took the place of {', '.join(before)}; its key {key['fingerprint']} is known.")

    # -- 5. what it cost ---------------------------------------------------------------------------------------------

    def summary(self) -> None:
        self._heading("8. What happened")
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

    def _allow_anew(self, policy: str) -> None:
        self._type("patch", f"spp/{policy}", "--type=merge", "-p", json.dumps({"spec": {"methods": ANEW}}))

    def _skip_the_soak(self, policy: str) -> None:
        """Half an hour is what the documented set waits after its canary."""
        waves = json.dumps({"spec": {"strategy": {"waves": [{"name": "rest"}]}}})
        self._type("patch", f"spp/{policy}", "--type=merge", "-p", waves)

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
    def _phase(self, title: str, tenants: Asking | None = None, *through: str) -> Iterator[None]:
        """Counts calls and VMs; `through` are the networks whose loss belongs to this phase."""
        self._record.since_last()
        began, before = time.monotonic(), self._operations()
        yield
        worked = [vm for vm in self.vms() if _operation(vm) not in ("", before.get(vm["metadata"]["name"], ""))]
        self.phases.append(
            Phase(
                title=title,
                vms=len(worked) or len(self.vms()),
                seconds=time.monotonic() - began,
                calls=self._record.since_last(),
                own=own_way(vm["status"]["identity"] for vm in worked) if worked else None,
                tenants=tenants,
                through=through,
            )
        )

    def _operations(self) -> dict[str, str]:
        return {vm["metadata"]["name"]: _operation(vm) for vm in self.vms()} if self.phases else {}

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

    def _all_seen(self) -> bool:
        vms = self.vms()
        return len(vms) == 12 and all(vm.get("status", {}).get("observed", {}).get("signature") for vm in vms)

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


def _operation(vm: Manifest) -> str:
    """The last one that ended."""
    operation = vm.get("status", {}).get("operation", {})
    return str(operation.get("id", "")) if operation.get("result") else ""
