"""Permissions are asked for what is used, and for what changes something only where that may be."""

from __future__ import annotations

import pytest

from sysvm.api.base import ObjectMeta
from sysvm.api.endpoint import Management
from sysvm.api.images import Image, ImageHypervisor, ImageMode, Images
from sysvm.api.policy import PatchPolicy
from sysvm.cloudstack.preflight import Feature
from sysvm.engine.endpoint import features_of

IMAGE = Image(hypervisor=ImageHypervisor.KVM, name="systemvm-kvm-4.20.2-x86_64")
ADOPT, REGISTER = (Images(mode=mode, items=(IMAGE,)) for mode in (ImageMode.ADOPT, ImageMode.REGISTER))
PROMOTE = Images(items=(IMAGE,), accept_promotion="0" * 8)


def policy(*methods: str, route: str = "Auto") -> PatchPolicy:
    spec = {
        "endpointRef": {"name": "prod"},
        "templateRef": {"name": "systemvm-4.20.2"},
        "methods": list(methods),
        "livePatch": {"route": route},
    }
    return PatchPolicy.model_validate({"metadata": ObjectMeta(name="routers"), "spec": spec})


@pytest.mark.parametrize(
    ("methods", "route", "images", "expected"),
    [
        (["LivePatch"], "SSH", None, set()),
        (["LivePatch"], "API", None, {Feature.PATCH_BY_API, Feature.COMPARE}),
        (["LivePatch"], "Auto", None, {Feature.FALL_BACK_TO_API, Feature.COMPARE}),
        (["Reboot"], "Auto", None, {Feature.REBOOT, Feature.COMPARE}),
        (["LivePatch", "Recreate"], "SSH", ADOPT, {Feature.RECREATE, Feature.COMPARE, Feature.ADOPT}),
        (["LivePatch"], "SSH", REGISTER, {Feature.ADOPT, Feature.REGISTER}),
        (["LivePatch"], "SSH", PROMOTE, {Feature.ADOPT, Feature.PROMOTE}),
    ],
)
def test_a_policy_needs_what_it_and_its_release_use(
    methods: list[str], route: str, images: Images | None, expected: set[Feature]
) -> None:
    assert features_of(Management.FULL, policy(*methods, route=route), images) == expected


def test_nothing_that_changes_a_cloud_is_needed_to_observe_it() -> None:
    everything = policy("LivePatch", "Reboot", "Recreate", route="API")
    assert features_of(Management.OBSERVE, everything, None) == set()
    assert features_of(Management.OBSERVE, everything, REGISTER) == {Feature.ADOPT}
    assert features_of(Management.OBSERVE, everything, PROMOTE) == {Feature.ADOPT}
