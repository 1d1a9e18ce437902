"""Which templates VMs may be started from: what is not known counts as taken, and is not relied on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import SystemVMType
from sysvm.api.images import Image, ImageArch, ImageHypervisor, Images
from sysvm.api.reasons import Reason
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState, CloudZone, Snapshot
from sysvm.domain.templates import ROUTING, SYSTEM, CloudTemplate, CloudTemplates, promotion, unused, wrong_start

X86, ARM = ImageArch.X86_64, ImageArch.AARCH64
ROUTERS, SYSTEM_VM = SystemVMType.ROUTER, SystemVMType.SECSTORAGE
X86_ONLY, BOTH = ("x86_64",), ("x86_64", "aarch64")


def template(name: str, type_: str = SYSTEM, *, hours: int = 0, **values: Any) -> CloudTemplate:
    base = {"id": f"id-{name}-{type_}-{values.get('arch', 'x86_64')}", "hypervisor": "KVM", "arch": "x86_64"}
    made = {"zone_id": "z-1", "ready": True, "created": NOW + timedelta(hours=hours)}
    return CloudTemplate(name=name, type=type_, **{**base, **made, **values})


def templates(*found: CloudTemplate, **names: str) -> CloudTemplates:
    """`names`: what routers take, a zone each."""
    return CloudTemplates(
        taken_at=NOW,
        templates=found,
        router_names={(zone.replace("_", "-"), "kvm"): name for zone, name in names.items()},
    )


def host(zone: str, arch: str) -> CloudHost:
    return CloudHost(
        id=f"{zone}-{arch}", name=f"{zone}-{arch}", address=None, zone_id=zone, hypervisor="KVM", arch=arch
    )


def vm(type_: SystemVMType = SYSTEM_VM, **values: Any) -> CloudVM:
    base: dict[str, Any] = {"id": "vm-1", "name": "s-1-VM", "type": type_, "state": CloudVMState.RUNNING}
    where = {"zone_id": "z-1", "zone": "ams", "hypervisor": "KVM", "arch": "x86_64", "host_id": "z-1-x86_64"}
    return CloudVM(**{**base, **where, **values})


def cloud(architectures: tuple[str, ...] = X86_ONLY, *vms: CloudVM) -> Snapshot:
    """Zone ams with hosts of these architectures, and fra, which is disabled, with one x86_64 host."""
    zones = (CloudZone(id="z-1", name="ams"), CloudZone(id="z-2", name="fra", enabled=False))
    hosts = (*(host("z-1", arch) for arch in architectures), host("z-2", "x86_64"))
    return Snapshot(
        taken_at=NOW,
        server_version="4.21.0.0",
        zones={zone.id: zone for zone in zones},
        hosts={one.id: one for one in hosts},
        vms={one.id: one for one in vms},
        networks={},
        vpcs={},
    )


def images(x86: str, arm: str | None = None) -> Images:
    names = {X86: x86} | ({ARM: arm} if arm else {})
    return Images(
        items=tuple(Image(hypervisor=ImageHypervisor.KVM, arch=arch, name=name) for arch, name in names.items())
    )


# What nothing is started from


def test_a_template_that_nothing_takes_is_named() -> None:
    seen = templates(template("old"), template("new", hours=1), template("kept"), z_1="new", z_2="new")
    declared = Image.model_construct(hypervisor=ImageHypervisor.KVM, name="kept")
    assert unused(cloud(), seen, [declared]) == ("old",)


def test_what_routers_take_is_never_named_while_the_setting_cannot_be_read() -> None:
    seen = templates(template("routers", ROUTING), template("new", hours=1))
    assert unused(cloud(), seen, []) == ()


def test_of_two_templates_of_one_second_neither_is_named() -> None:
    seen = templates(template("a"), template("b"), z_1="a", z_2="a")
    assert unused(cloud(), seen, []) == ()


def test_a_template_that_is_not_ready_yet_is_not_named_whatever_is_taken_until_then() -> None:
    arriving = template("next", hours=9, ready=False)
    assert unused(cloud(), templates(arriving, z_1="b", z_2="b"), []) == ()
    assert unused(cloud(), templates(template("now"), arriving, z_1="now", z_2="now"), []) == ()


def test_what_a_disabled_zone_is_started_from_is_not_named() -> None:
    seen = templates(template("here"), template("there", zone_id="z-2"), z_1="here", z_2="there")
    assert unused(cloud(), seen, []) == ()


def test_a_name_that_is_in_use_is_not_named_for_another_template_that_bears_it() -> None:
    seen = templates(template("a", ROUTING), template("a"), template("new", hours=9), z_1="a", z_2="new")
    assert unused(cloud(), seen, []) == ()


def test_the_template_that_a_vm_refers_to_is_not_named() -> None:
    old, new = template("old"), template("new", hours=1)
    seen = templates(old, new, z_1="new", z_2="new")
    assert unused(cloud(X86_ONLY, vm(template_id=old.id)), seen, []) == ()


def test_where_the_architecture_is_not_known_every_template_that_fits_counts_as_taken() -> None:
    arm = template("arm", arch="aarch64")
    seen = templates(template("old"), template("new", hours=1), arm, template("idle", ROUTING), z_1="new", z_2="new")
    assert unused(cloud(BOTH), seen, []) == ("idle",)


# What a VM is started anew from


def started(vm: CloudVM, declared: Images, seen: CloudTemplates, architectures: tuple[str, ...]) -> Reason | None:
    found = wrong_start(vm, [host("z-1", arch) for arch in architectures], declared, seen)
    return found.reason if found is not None else None


OLD_ARM = (template("systemvm-kvm-4.20.2-x86_64"), template("systemvm-kvm-4.19.1", arch="aarch64"))
NEW_ARM = (template("systemvm-kvm-4.20.2-x86_64"), template("systemvm-kvm-4.20.2-aarch64", arch="aarch64"))
DECLARED = images("systemvm-kvm-4.20.2-x86_64", "systemvm-kvm-4.20.2-aarch64")


@pytest.mark.parametrize(
    ("architectures", "found", "declared", "reason"),
    [
        (X86_ONLY, OLD_ARM, DECLARED, None),
        (BOTH, OLD_ARM, DECLARED, Reason.WRONG_TEMPLATE_WOULD_BE_USED),
        (BOTH, OLD_ARM, images("systemvm-kvm-4.20.2-x86_64"), Reason.IMAGE_NOT_DECLARED),
        (BOTH, NEW_ARM, DECLARED, None),
        (BOTH, OLD_ARM[:1], DECLARED, None),
    ],
    ids=["one architecture", "another template", "not declared", "both are declared", "no template of the other"],
)
def test_a_system_vm_is_recreated_only_if_it_does_not_matter_which_architecture_it_gets(
    architectures: tuple[str, ...], found: tuple[CloudTemplate, ...], declared: Images, reason: Reason | None
) -> None:
    assert started(vm(), declared, templates(*found), architectures) == reason


def test_a_template_of_another_architecture_that_is_being_loaded_counts_already() -> None:
    arriving = (OLD_ARM[0], template("systemvm-kvm-4.19.1", arch="aarch64", ready=False))
    assert started(vm(), DECLARED, templates(*arriving), BOTH) is Reason.WRONG_TEMPLATE_WOULD_BE_USED


def test_a_router_takes_the_architectures_of_the_template_that_the_setting_names() -> None:
    seen = templates(*NEW_ARM, z_1="systemvm-kvm-4.20.2-x86_64")
    assert started(vm(ROUTERS), DECLARED, seen, BOTH) is None
    alike = "systemvm-kvm-4.20.2"
    seen = templates(template(alike), template(alike, arch="aarch64", ready=False), z_1=alike)
    assert started(vm(ROUTERS), images(alike, alike), seen, BOTH) is Reason.IMAGE_NOT_READY


def test_the_sentence_says_that_the_architecture_is_not_known() -> None:
    hosts = [host("z-1", arch) for arch in BOTH]
    found = wrong_start(vm(), hosts, DECLARED, templates(*OLD_ARM))
    assert found is not None
    assert found.message.endswith("; KVM hosts of zone ams have several architectures, and the server may take any")
    alone = wrong_start(vm(), hosts[:1], DECLARED, templates())
    assert alone is not None
    assert "architectures" not in alone.message


# What promotion can do


def test_promotion_leaves_the_setting_alone_that_cannot_hold_the_names_of_all_architectures() -> None:
    """It would be carried out for one of them, and the next look would offer the other."""
    router = vm(ROUTERS, name="r-2-VM", id="vm-2")
    seen = templates(*NEW_ARM, z_1="systemvm-kvm-4.19.1")
    assert promotion(DECLARED, cloud(BOTH, vm(), router), seen) is None
    alike = "systemvm-kvm-4.20.2"
    seen = templates(template(alike), template(alike, arch="aarch64"), z_1="systemvm-kvm-4.19.1")
    found = promotion(images(alike, alike), cloud(BOTH, vm(), router), seen)
    assert found is not None
    assert [change.sentence for change in found.changes] == [f"set router.template.kvm of zone ams to {alike}"]
    assert found.vms == ("r-2-VM",)


def test_promotion_names_only_vms_that_its_changes_concern() -> None:
    """A newer SYSTEM template keeps the system VMs from the image, and no call can change that."""
    newer = template("systemvm-kvm-4.99.0", hours=9)
    seen = templates(OLD_ARM[0], newer, z_1="systemvm-kvm-4.19.1")
    router = vm(ROUTERS, name="r-2-VM", id="vm-2")
    found = promotion(images("systemvm-kvm-4.20.2-x86_64"), cloud(X86_ONLY, vm(), router), seen)
    assert found is not None
    assert found.vms == ("r-2-VM",)
