"""A cloud becomes SystemVM objects: the operator on the real API server, sweeping the stand-in of a management server.

The VMs behind are simulated. What is proven is what sweeps lead to: who is found, who is forgotten and when, what a
person's hold outlives, and that a cloud which cannot be read takes nothing away.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cluster import condition, says
from tests.integration.engine.journey import FIRST, Journey
from tests.integration.engine.objects import Manifest
from tests.integration.engine.test_truth import events

from lab.cloud import CHANGING, VM, Answer, VMState, World, cloud_server
from sysvm.api.base import REQUESTED_AT_ANNOTATION
from sysvm.engine.resources import ENDPOINT, SECRET, SYSTEM_VM

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAST_LIST = "listVPCs"
"""The list that ends a sweep."""


@dataclass
class Cloud:
    """One test's cloud, and the endpoint that names it."""

    journey: Journey
    world: World
    url: str
    words: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def name(self) -> str:
        return self.journey.name

    async def declare(self, name: str = "", *, user: int = 0, url: str = "", **spec: Any) -> None:
        """Keys, and an endpoint with them. Every VM of the cloud answers."""
        name = name or self.name
        account = self.world.users[user]
        keys = {"apiKey": account.api_key, "secretKey": account.secret}
        namespace = self.journey.namespace
        if await namespace.find(SECRET, f"{name}-keys") is None:
            await namespace.create(objects.secret(namespace.name, f"{name}-keys", **keys))
        self.answering()
        api = {"url": url or self.url, "credentialsSecretRef": {"name": f"{name}-keys"}, "timeout": "5s"}
        api["limits"] = {"requestsPerSecond": 100, "burst": 1000}
        scan = {"interval": "10s", "inventory": "1h"}
        await self.journey.endpoint([], name, **{"inventory": "CloudStack", "api": api, "scan": scan, **spec})

    def answering(self) -> None:
        for vm in self.world.vms.values():
            if vm.name not in self.journey.vms:
                self.journey.fleet.add(vm.name)
                self.journey.vms.append(vm.name)

    def remove(self, vm: VM) -> None:
        """It is gone from the server's lists, whoever did it."""
        del self.world.vms[vm.id]

    async def swept(self, times: int = 1) -> None:
        """So many whole sweeps from now on."""
        for _ in range(times):
            wanted = self.sweeps() + 1
            await self.ask()

            async def swept(wanted: int = wanted) -> bool:
                return self.sweeps() >= wanted

            await self.journey.until(swept, "another sweep")

    def sweeps(self) -> int:
        return sum(call.command == LAST_LIST for call in self.world.calls)

    async def ask(self) -> None:
        word = f"sweep-{next(self.words)}"
        await self.journey.namespace.annotate(ENDPOINT, self.name, REQUESTED_AT_ANNOTATION, word)

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        async def asked() -> Any:
            return holds()

        await self.journey.until(asked, what)

    async def objects(self) -> dict[str, Manifest]:
        """By name of the VM, as the object's name has it."""
        found = await self.journey.namespace.all(SYSTEM_VM)
        prefix = f"{self.name}-"
        return {
            one["metadata"]["name"].removeprefix(prefix): one
            for one in found
            if one["spec"]["endpointRef"]["name"] == self.name
        }

    async def has(self, *vms: VM) -> dict[str, Manifest]:
        """The objects, once they are exactly those of these VMs."""
        wanted = sorted(vm.name.lower() for vm in vms)

        async def there() -> tuple[dict[str, Manifest]] | None:
            found = await self.objects()
            return (found,) if sorted(found) == wanted else None

        (found,) = await self.journey.until(there, f"the objects are {wanted}")
        return dict(found)

    async def known(self, vm: VM, holds: Callable[[dict[str, Any]], bool], what: str) -> Manifest:
        """The object, once its identity is so."""

        async def so() -> Manifest | None:
            found = (await self.objects()).get(vm.name.lower())
            identity = ((found or {}).get("status") or {}).get("identity")
            return found if found is not None and identity is not None and holds(identity) else None

        found: Manifest = await self.journey.until(so, f"{vm.name}: {what}")
        return found

    async def hold(self, vm: VM, reason: str) -> None:
        name = self.journey.object_of(vm.name)
        await self.journey.namespace.edit(SYSTEM_VM, name, {"hold": {"reason": reason}, "priority": 7})

    async def told(self, name: str, reason: str) -> list[str]:
        """Notes of Events about an object, once there is one of that reason."""

        async def there() -> list[str] | None:
            found = await events(self.journey, name)
            return [note for _, why, note in found if why == reason] or None

        return list(await self.journey.until(there, f"an Event {reason} about {name}"))

    async def says(self, reason: str, status: str = "False", text: str = "", *, type_: str = "Ready") -> str:
        """The message of the endpoint's condition, once it has that status and reason and holds the text."""

        async def said() -> str | None:
            endpoint = await self.journey.namespace.get(ENDPOINT, self.name)
            found = condition(endpoint, type_)
            message = str(found.get("message", ""))
            return message or "nothing" if says(endpoint, type_) == (status, reason) and text in message else None

        return str(await self.journey.until(said, f"{self.name} says {type_}={status} {reason}: {text}"))


@pytest_asyncio.fixture(loop_scope="module")
async def cloud(journey: Journey) -> AsyncIterator[Cloud]:
    world = World(version="4.21.0.0", template_version="4.20.2")
    zone = world.add_zone("ams-1")
    world.add_host(zone, "kvm-1")
    world.add_host(zone, "kvm-2")
    async with cloud_server(world) as url:
        yield Cloud(journey, world, url)


def zone_of(cloud: Cloud) -> Any:
    return next(iter(cloud.world.zones.values()))


def network(cloud: Cloud, name: str = "net-1", **more: Any) -> Any:
    return cloud.world.add_network(zone_of(cloud), name, **more)


# Who is there


async def test_every_system_vm_of_the_cloud_becomes_an_object_that_says_who_it_is(cloud: Cloud) -> None:
    world, zone = cloud.world, zone_of(cloud)
    served = network(cloud, redundant=True, project="crm")
    pair = world.add_routers(served)
    shared = world.add_routers(network(cloud, "lan", kind="Shared"))
    vpc = world.add_vpc(zone, "vpc-1", redundant=True, tiers=3)
    tier = next(one for one in world.networks.values() if one.vpc is vpc)
    more = [*world.add_routers(vpc), world.add_internal_lb(tier), world.add_ssvm(zone), world.add_cpvm(zone)]
    await cloud.declare()
    await cloud.has(*pair, *shared, *more)
    for vm in (*pair, *shared, *more):
        found = await cloud.known(vm, lambda identity: bool(identity), "is described")
        identity = found["status"]["identity"]
        assert (identity["id"], identity["name"], identity["type"]) == (vm.id, vm.name, vm.type.value)
        assert vm.host is not None
        assert (identity["zone"], identity["host"], identity["state"]) == ("ams-1", vm.host.name, "Running")
        assert identity["address"] == vm.control_address
    groups = {vm.name: (await cloud.known(vm, bool, ""))["status"]["identity"].get("group") for vm in (*pair, *more)}
    assert {groups[vm.name] for vm in pair} == {served.id}
    assert {groups[vm.name] for vm in more[:2]} == {vpc.id}
    assert (groups[more[3].name], groups[more[4].name]) == (None, None), "SSVM and CPVM belong to their zone"
    await cloud.says("Reachable", "True", "8 of 8 VMs answer")
    endpoint = await cloud.journey.namespace.get(ENDPOINT, cloud.name)
    assert endpoint["status"]["managementServerVersion"] == "4.21.0.0"
    assert endpoint["status"]["minimumTemplateVersion"] == [{"zone": "ams-1", "version": "4.20.2"}]
    assert endpoint["status"]["counts"]["systemVMs"] == 8
    assert condition(endpoint, "Authorized")["status"] == "True"


async def test_a_stopped_vm_and_one_without_an_address_are_told_and_left_alone(cloud: Cloud) -> None:
    first, second = cloud.world.add_routers(network(cloud))[0], cloud.world.add_routers(network(cloud, "net-2"))[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    first.state, first.host, second.control_address = VMState.STOPPED, None, None
    await cloud.swept()
    stopped = await cloud.known(first, lambda identity: identity["state"] == "Stopped", "is stopped")
    homeless = await cloud.known(second, lambda identity: "address" not in identity, "has no address")
    assert condition(stopped, "Ready")["reason"] == "VMNotRunning"
    assert "is Stopped in CloudStack" in condition(stopped, "Ready")["message"]
    assert "has no address in CloudStack" in condition(homeless, "Ready")["message"]
    looks = cloud.journey.fleet.state(first.name)["looks"]
    await cloud.says("Reachable", "True", "2 cannot be looked at now")
    await cloud.told(cloud.journey.object_of(first.name), "StateChanged")
    first.state, first.host = VMState.RUNNING, next(iter(cloud.world.hosts.values()))
    await cloud.swept()
    await cloud.until(lambda: cloud.journey.fleet.state(first.name)["looks"] > looks, "looked at again")


async def test_a_migration_is_followed_and_told(cloud: Cloud) -> None:
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.known(vm, lambda identity: identity["host"] == "kvm-1", "runs on kvm-1")
    vm.host = next(host for host in cloud.world.hosts.values() if host.name == "kvm-2")
    await cloud.swept()
    await cloud.known(vm, lambda identity: identity["host"] == "kvm-2", "runs on kvm-2")
    assert "runs on kvm-2, it ran on kvm-1" in (await cloud.told(cloud.journey.object_of(vm.name), "Migrated"))[0]


async def test_a_restart_and_a_patch_by_others_are_seen_and_told(cloud: Cloud) -> None:
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    cloud.journey.fleet.set(vm.name, boot_id="b2", signature="f" * 32, checksum="f" * 32)
    await cloud.journey.ask_for_a_look(vm.name)
    name = cloud.journey.object_of(vm.name)
    assert "started anew" in (await cloud.told(name, "RestartedOutside"))[0]
    assert "without an operation of this operator" in (await cloud.told(name, "PatchedOutside"))[0]


# Who is gone


async def test_a_vm_is_forgotten_after_two_whole_sweeps_without_it_and_not_after_one(cloud: Cloud) -> None:
    stays, goes = (cloud.world.add_routers(network(cloud, name))[0] for name in ("net-1", "net-2"))
    await cloud.declare()
    await cloud.says("Reachable", "True")
    cloud.remove(goes)
    await cloud.swept()
    missing = await cloud.known(goes, lambda identity: identity["state"] == "Missing", "is missing")
    assert "the last sweep did not find" in condition(missing, "Ready")["message"]
    await cloud.swept()
    await cloud.has(stays)
    await cloud.told(cloud.journey.object_of(goes.name), "Gone")


async def test_vms_of_a_list_that_the_role_may_no_longer_read_are_kept_and_looked_for_again(cloud: Cloud) -> None:
    user = cloud.world.users[1]
    vpc = cloud.world.add_vpc(zone_of(cloud), "vpc-1", tiers=1)
    tier = next(one for one in cloud.world.networks.values() if one.vpc is vpc)
    vms = [*cloud.world.add_routers(vpc), cloud.world.add_internal_lb(tier)]
    await cloud.declare(user=1)
    found = await cloud.has(*vms)
    user.lacks = frozenset({"listInternalLoadBalancerVMs"})
    for _ in range(3):
        await cloud.swept()
    kept = await cloud.known(vms[-1], lambda identity: identity["state"] == "Missing", "is not looked for")
    assert "the role of this account may no longer list" in condition(kept, "Ready")["message"]
    await cloud.says("Authorized", "True", text="not read: listInternalLoadBalancerVMs", type_="Authorized")
    user.lacks = frozenset()
    await cloud.swept()
    back = await cloud.known(vms[-1], lambda identity: identity["state"] == "Running", "is found again")
    assert back["metadata"]["uid"] == found[vms[-1].name.lower()]["metadata"]["uid"]


async def test_a_vm_that_one_sweep_missed_is_as_it_was(cloud: Cloud) -> None:
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    uid = (await cloud.known(vm, bool, "is known"))["metadata"]["uid"]
    await cloud.says("Reachable", "True")
    cloud.remove(vm)
    await cloud.swept()
    await cloud.known(vm, lambda identity: identity["state"] == "Missing", "is missing")
    cloud.world.vms[vm.id] = vm
    await cloud.swept()
    found = await cloud.known(vm, lambda identity: identity["state"] == "Running", "is back")
    assert found["metadata"]["uid"] == uid


@pytest.mark.parametrize("fault", ["half_lists", "html", "half", "garbage", "errors", "one-list"])
async def test_a_listing_that_failed_or_was_not_whole_removes_nothing(cloud: Cloud, fault: str) -> None:
    vms = [cloud.world.add_routers(network(cloud, f"net-{number}"))[0] for number in range(4)]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    for vm in vms[:3]:
        cloud.remove(vm)
    faults = cloud.world.faults
    if fault == "half_lists":
        faults.half_lists = True
        cloud.world.vms |= {vm.id: vm for vm in vms[:3]}
    elif fault == "errors":
        faults.errors = 1000
    elif fault == "one-list":
        faults.commands, faults.answer = {"listVPCs"}, Answer.GARBAGE
    else:
        faults.answer = Answer(fault)
    await cloud.ask()

    async def failed() -> bool:
        endpoint = await cloud.journey.namespace.get(ENDPOINT, cloud.name)
        return bool(condition(endpoint, "Reachable")["status"] == "False")

    await cloud.journey.until(failed, "the endpoint says that it cannot read its cloud")
    for _ in range(3):
        await cloud.ask()
    assert sorted(await cloud.objects()) == sorted(vm.name.lower() for vm in vms)
    faults.heal()
    await cloud.swept()
    await cloud.says("Reachable", "True")


# Recreation, and what it must not lose


async def recreated(cloud: Cloud, vm: VM) -> VM:
    """Another one in its place, as a restart with cleanup leaves it."""
    cloud.remove(vm)
    new = cloud.world.add_router(network=vm.network)
    new.created = vm.created + timedelta(days=1)
    cloud.answering()
    return new


async def test_a_hold_survives_recreation_under_a_new_name(cloud: Cloud) -> None:
    old = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    await cloud.hold(old, "CHG-881")
    new = await recreated(cloud, old)
    await cloud.swept()
    found = await cloud.known(new, lambda identity: identity.get("predecessor") == old.name, "names its predecessor")
    assert (found["spec"]["hold"]["reason"], found["spec"]["priority"]) == ("CHG-881", 7)
    await cloud.swept()
    await cloud.has(new)
    assert f"took the place of {old.name}" in (await cloud.told(cloud.journey.object_of(new.name), "Recreated"))[0]


async def test_a_hold_waits_for_a_successor_that_comes_late(cloud: Cloud) -> None:
    old = cloud.world.add_ssvm(zone_of(cloud))
    await cloud.declare()
    await cloud.says("Reachable", "True")
    await cloud.hold(old, "console migration")
    cloud.remove(old)
    await cloud.swept(3)
    kept = await cloud.known(old, lambda identity: identity["state"] == "Missing", "is kept")
    new = cloud.world.add_ssvm(zone_of(cloud))
    new.created = old.created + timedelta(days=1)
    cloud.answering()
    await cloud.swept()
    found = (await cloud.has(new))[new.name.lower()]
    assert found["spec"]["hold"]["reason"] == "console migration"
    assert kept["spec"]["hold"] == found["spec"]["hold"]


async def test_a_hold_passes_on_when_the_new_one_was_there_before_the_old_one_went(cloud: Cloud) -> None:
    old = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    await cloud.hold(old, "CHG-882")
    new = cloud.world.add_router(network=old.network)
    new.created = old.created + timedelta(days=1)
    cloud.answering()
    await cloud.swept()
    await cloud.known(new, bool, "is known")
    cloud.remove(old)
    await cloud.swept(2)
    found = (await cloud.has(new))[new.name.lower()]
    assert found["spec"]["hold"]["reason"] == "CHG-882"


async def test_a_hold_goes_with_its_network(cloud: Cloud) -> None:
    served = network(cloud)
    old = cloud.world.add_routers(served)[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    await cloud.hold(old, "CHG-883")
    cloud.remove(old)
    del cloud.world.networks[served.id]
    await cloud.swept(2)
    await cloud.has()


# What is written


async def test_a_cloud_in_which_nothing_happens_costs_no_write(cloud: Cloud) -> None:
    vms = [cloud.world.add_routers(network(cloud, f"net-{number}"))[0] for number in range(3)]
    await cloud.declare(scan={"interval": "1h", "content": "24h", "inventory": "10s"})
    await cloud.says("Reachable", "True")

    async def versions() -> dict[str, str]:
        found = {name: one["metadata"]["resourceVersion"] for name, one in (await cloud.objects()).items()}
        endpoint = await cloud.journey.namespace.get(ENDPOINT, cloud.name)
        return found | {"endpoint": endpoint["metadata"]["resourceVersion"]}

    before, sweeps = await versions(), cloud.sweeps()
    await cloud.until(lambda: cloud.sweeps() >= sweeps + 3, "three more sweeps")
    assert await versions() == before
    assert len(before) == len(vms) + 1


# What is wrong with the cloud, or with us


async def test_wrong_keys_are_told(cloud: Cloud) -> None:
    cloud.world.add_routers(network(cloud))
    cloud.world.users[0].secret = "another"
    namespace = cloud.journey.namespace
    await namespace.create(objects.secret(namespace.name, f"{cloud.name}-keys", apiKey="admin-key", secretKey="wrong"))
    await cloud.declare()
    await cloud.says("Unauthorized", text="Check apiKey and secretKey", type_="Authorized")
    await cloud.says("Unauthorized", type_="Stalled", status="True")
    assert await cloud.objects() == {}


async def test_a_clock_that_is_wrong_is_told_with_the_difference(cloud: Cloud) -> None:
    cloud.world.faults.clock_ahead_seconds = 3600.0
    await cloud.declare()
    await cloud.says("Unauthorized", text="s behind the server's: correct it", type_="Authorized")


async def test_a_clock_with_which_sweeps_still_pass_is_told_before_a_change_is_refused(cloud: Cloud) -> None:
    cloud.world.faults.clock_ahead_seconds = 180.0
    await cloud.declare()
    await cloud.says("Reachable", "True", "s behind the server's: correct it")


async def test_a_url_of_the_user_interface_is_told(cloud: Cloud) -> None:
    cloud.world.faults.answer = Answer.HTML
    await cloud.declare()
    await cloud.says("NotCloudStack", text="Check the URL")


async def test_a_server_without_tls_is_told(cloud: Cloud) -> None:
    await cloud.declare(url=cloud.url.replace("http://", "https://"))
    await cloud.says("TLSFailed", text="caBundleRef")


async def test_a_server_that_nobody_reaches_is_tried_again(cloud: Cloud) -> None:
    await cloud.declare(url="http://127.0.0.1:9/client/api")
    await cloud.says("APIUnreachable")
    await cloud.says("APIUnreachable", type_="Reconciling", status="True")


async def test_a_role_without_a_permission_is_told_which(cloud: Cloud) -> None:
    user = cloud.world.users[1]
    user.lacks = frozenset({"listRouters"})
    await cloud.declare(user=1)
    await cloud.says("MissingPermissions", text="listRouters", type_="Authorized")


async def test_what_a_policy_needs_is_asked_for_and_what_a_list_lacks_is_told(cloud: Cloud) -> None:
    user = cloud.world.users[1]
    user.lacks = frozenset({"listConfigurations"})
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare(user=1)
    await cloud.has(vm)
    await cloud.says("MissingPermissions", text="listConfigurations", type_="Authorized")
    await cloud.says("Reachable", "True", text="minreq.sysvmtemplate.version is not known of zone ams-1")


async def test_a_disabled_zone_is_told_and_its_vms_are_looked_at(cloud: Cloud) -> None:
    zone_of(cloud).enabled = False
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.has(vm)
    await cloud.says("Reachable", "True", text="disabled in CloudStack")


async def test_of_two_endpoints_on_one_cloud_the_older_keeps_it(cloud: Cloud) -> None:
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    await cloud.says("Reachable", "True")
    second = f"{cloud.name}-second"
    await cloud.declare(second)
    found = await cloud.journey.says(ENDPOINT, second, "Conflict")
    assert cloud.name in condition(found, "Ready")["message"]
    everybody = await cloud.journey.namespace.all(SYSTEM_VM)
    assert [one for one in everybody if one["spec"]["endpointRef"]["name"] == second] == []
    await cloud.has(vm)
    await cloud.journey.namespace.delete(ENDPOINT, cloud.name)
    await cloud.journey.says(ENDPOINT, second, "Reachable", "True")


async def test_an_endpoint_deleted_while_an_operation_runs_harms_nobody(cloud: Cloud) -> None:
    vm = cloud.world.add_routers(network(cloud))[0]
    await cloud.declare()
    cloud.journey.fleet.set(vm.name, seconds=3.0)
    await cloud.journey.release("first")
    await cloud.journey.policy()
    await cloud.until(lambda: bool(cloud.journey.patches()), "the VM is in work")
    await cloud.journey.namespace.delete(ENDPOINT, cloud.name)

    await cloud.journey.gone(SYSTEM_VM, cloud.journey.object_of(vm.name))
    assert cloud.journey.patched(FIRST) == [vm.name]
    assert [call for call in cloud.world.calls if call.command in CHANGING] == []
    assert vm.id in cloud.world.vms
