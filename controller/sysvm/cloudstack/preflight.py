"""What the role of the operator's user may not do, asked before it is needed and told by feature.

`listApis` answers with the commands that a role may call, and with an error for a single command that it may not
(CloudStack 4.21, seen: 530, "Api Discovery plugin was unable to find an api by that name"). Commands are asked for one
by one: the whole list is of megabytes, because it describes every parameter of some 800 commands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sysvm.cloudstack import rules
from sysvm.cloudstack.errors import NotAllowed, ServerError
from sysvm.cloudstack.transport import Answer, Param


class Feature(StrEnum):
    """What the operator does with the API, in the words of messages and of the page on permissions."""

    OBSERVE = "Observe"
    PATCH_BY_API = "live patch by the API"
    FALL_BACK_TO_API = "live patch by the API where a gate is closed"
    REBOOT = "Reboot"
    RECREATE = "Recreate"
    ADOPT = "templates: Adopt"
    REGISTER = "templates: Register"
    PROMOTE = "templates: acceptPromotion"
    COMPARE = "room before a call, rules after it"


_JOBS = ("queryAsyncJobResult", "listAsyncJobs", "listTemplates")
"""A job is asked for, looked for when its id is lost, and not begun before its template is known."""

COMMANDS: Mapping[Feature, tuple[str, ...]] = {
    Feature.OBSERVE: (
        "listCapabilities",
        "listZones",
        "listHosts",
        "listSystemVms",
        "listRouters",
        "listInternalLoadBalancerVMs",
        "listNetworks",
        "listVPCs",
        "listConfigurations",
        "listManagementServers",
    ),
    Feature.PATCH_BY_API: ("patchSystemVm", "restartNetwork", "restartVPC", *_JOBS),
    Feature.FALL_BACK_TO_API: ("patchSystemVm", "restartNetwork", "restartVPC", *_JOBS),
    Feature.REBOOT: ("rebootSystemVm", "rebootRouter", *_JOBS),
    Feature.RECREATE: ("destroySystemVm", "restartNetwork", "restartVPC", *_JOBS),
    Feature.ADOPT: ("listTemplates",),
    Feature.REGISTER: ("listTemplates", "listOsTypes", "registerTemplate"),
    Feature.PROMOTE: ("listTemplates", "updateTemplate", "updateConfiguration"),
    Feature.COMPARE: (*rules.COMMANDS, "listCapacity"),
}
"""The commands of each feature; every feature needs those of OBSERVE and `listApis` too."""

OPTIONAL = frozenset({"listConfigurations", "listInternalLoadBalancerVMs", "listManagementServers"})
"""Without these a sweep is less complete, and says what it does not know; it is not refused."""


DISPENSABLE = frozenset({Feature.FALL_BACK_TO_API, Feature.COMPARE})
"""What is lacking for these is told, and is no fault: without them less is compared, or a VM is held."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What is missing. `unknown` is true when the role may not call `listApis`: then nothing is known of the rest."""

    missing: Mapping[Feature, tuple[str, ...]]
    unknown: bool = False

    @property
    def complete(self) -> bool:
        return not self.unknown and not self.missing

    @property
    def may_observe(self) -> bool:
        """Whether a sweep can be made at all, as far as it is known."""
        return not set(self.missing.get(Feature.OBSERVE, ())) - OPTIONAL

    def sentence(self) -> str:
        """For a condition: what is missing and what for; empty when nothing that is needed is."""
        if self.unknown:
            return "The role of the operator's user may not call listApis, so its other permissions are not known"
        return self._lacks([feature for feature in self.missing if feature not in DISPENSABLE])

    def warning(self) -> str:
        """What is missing of that which can be done without; empty: nothing."""
        return self._lacks([feature for feature in self.missing if feature in DISPENSABLE])

    def _lacks(self, features: Sequence[Feature]) -> str:
        parts = [f"{', '.join(self.missing[feature])} ({feature})" for feature in features]
        return f"The role of the operator's user lacks {'; '.join(parts)}" if parts else ""


class Reads(Protocol):
    """The part of the client that is needed here."""

    async def call(self, command: str, **params: Param) -> Answer: ...


async def missing_permissions(cloud: Reads, features: Collection[Feature]) -> Permissions:
    """What the role lacks for these features, and for observing. Raises the classes of `errors`."""
    wanted = [feature for feature in Feature if feature in {Feature.OBSERVE, *features}]
    known: dict[str, bool] = {}
    missing: dict[Feature, tuple[str, ...]] = {}
    try:
        for feature in wanted:
            for command in COMMANDS[feature]:
                if command not in known:
                    known[command] = await _may_call(cloud, command)
            lacking = tuple(command for command in COMMANDS[feature] if not known[command])
            if lacking:
                missing[feature] = lacking
    except NotAllowed:
        return Permissions({}, unknown=True)
    return Permissions(missing)


async def _may_call(cloud: Reads, command: str) -> bool:
    try:
        answer = await cloud.call("listApis", name=command)
    except ServerError as error:
        if "unable to find an api by that name" in error.server_text:
            return False
        raise
    apis = answer.get("api")
    return isinstance(apis, list) and any(isinstance(api, dict) and api.get("name") == command for api in apis)
