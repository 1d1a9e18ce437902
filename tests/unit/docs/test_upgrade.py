"""The policies of the page on upgrades: no VM is left out, none is asked for twice, and the order is what it says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import yaml
from tests.unit.domain.builders import NOW

from sysvm.api.base import ObjectMeta
from sysvm.api.endpoint import SystemVMType
from sysvm.api.policy import PatchPolicy
from sysvm.api.systemvm import Identity
from sysvm.domain.facts import NEVER_TRIED, VMFacts
from sysvm.domain.selection import select

SET = Path(__file__).resolve().parents[3] / "docs/examples/upgrade.yaml"
PAIRS = (SystemVMType.ROUTER, SystemVMType.VPCROUTER)


@pytest.fixture(scope="module")
def policies() -> dict[str, PatchPolicy]:
    documents = [one for one in yaml.safe_load_all(SET.read_text()) if one["kind"] == "PatchPolicy"]
    return {
        one["metadata"]["name"]: PatchPolicy.model_validate(one).model_copy(
            update={"metadata": ObjectMeta(name=one["metadata"]["name"], creation_timestamp=NOW)}
        )
        for one in documents
    }


def vm(type_: SystemVMType, *, redundant: bool | None) -> VMFacts:
    """As the inventory tells it, before any look."""
    return VMFacts(
        name=f"prod-{type_}",
        uid=f"uid-{type_}",
        endpoint="prod",
        identity=Identity(name=f"x-{type_}", type=type_, address="192.0.2.1", redundant=redundant),
        moment=NOW,
        reach=NEVER_TRIED,
    )


KINDS = [(type_, told) for type_, told in product(SystemVMType, (True, False, None)) if not told or type_ in PAIRS]
"""Only routers come in pairs."""


@pytest.mark.parametrize(("type_", "redundant"), KINDS)
def test_every_vm_belongs_to_exactly_one_of_them(
    policies: dict[str, PatchPolicy], type_: SystemVMType, redundant: bool | None
) -> None:
    """VPC routers without tiers and internal LB VMs included: their type is all that is asked for."""
    facts = vm(type_, redundant=redundant)
    wanting = [name for name, policy in policies.items() if select(policy, list(policies.values()), [facts]).vms]
    conflicts = [name for name, one in policies.items() if select(one, list(policies.values()), [facts]).conflicts]
    assert len(wanting) == 1
    assert conflicts == []


def test_the_order_is_that_of_the_page(policies: dict[str, PatchPolicy]) -> None:
    after = {name: [ref.name for ref in policy.spec.after] for name, policy in policies.items()}
    assert after == {
        "system-vms": [],
        "redundant-routers": ["system-vms"],
        "single-routers": ["redundant-routers"],
        "load-balancers": ["single-routers"],
    }


def test_all_of_them_bring_one_release(policies: dict[str, PatchPolicy]) -> None:
    assert len({policy.spec.template_ref.name for policy in policies.values()}) == 1
