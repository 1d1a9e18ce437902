"""What a command of the API is: its parameters, what listApis says of it, and what is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from lab.cloud.answers import Fields
from lab.cloud.errors import invalid, missing_parameter, unknown_entity
from lab.cloud.jobs import Jobs, Work
from lab.cloud.lifecycle import Lifecycle
from lab.cloud.users import User
from lab.cloud.world import World

Parameters = dict[str, str]


class Kind(StrEnum):
    """Types of parameters as listApis names them; ids are `uuid` there."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    VM = "vm"
    NETWORK = "network"
    VPC = "vpc"
    ZONE = "zone"
    HOST = "host"
    TEMPLATE = "template"
    JOB = "job"


_TOLD = {Kind.STRING: "string", Kind.INTEGER: "integer", Kind.BOOLEAN: "boolean"}


@dataclass(frozen=True)
class Context:
    """What a command works with."""

    world: World
    jobs: Jobs
    lifecycle: Lifecycle
    user: User
    server_id: str
    started: str


@dataclass(frozen=True)
class Command:
    """One command. `parameters` are kinds by name, with `*` behind the name of a required one."""

    name: str
    parameters: Mapping[str, Kind]
    run: Callable[[Context, Parameters], Fields]
    is_async: bool = False
    response: str = ""
    since: str = ""

    @property
    def response_name(self) -> str:
        return self.response or f"{self.name.lower()}response"

    def told(self) -> Fields:
        """As listApis tells it."""
        parameters = [
            {
                "name": name.rstrip("*"),
                "type": _TOLD.get(kind, "uuid"),
                "length": 255,
                "required": name.endswith("*"),
            }
            for name, kind in self.parameters.items()
        ]
        told: Fields = {"name": self.name, "isasync": self.is_async, "params": parameters, "response": []}
        return told | ({"since": self.since} if self.since else {})


def check(command: Command, parameters: Parameters, context: Context) -> None:
    """Refuses what is missing, empty or names nothing. Unknown parameters and odd booleans are let in."""
    for marked, kind in command.parameters.items():
        name = marked.rstrip("*")
        if name not in parameters:
            if marked.endswith("*"):
                raise missing_parameter(command.name, name)
            continue
        value = parameters[name]
        if kind in (Kind.STRING, Kind.BOOLEAN, Kind.INTEGER):
            if kind is Kind.INTEGER and not value.lstrip("-").isdigit():
                raise unknown_entity(command.name, name, value)
            continue
        if not value:
            raise invalid(f"Invalid value provided for API arg: {name}")
        if kind is Kind.VM and value in context.world.removed:
            raise invalid(f"Unable to find UUID for id [{context.world.removed[value]}] of type [VirtualMachine]")
        if value in _known(kind, context):
            continue
        by_number = next((vm.id for vm in context.world.vms.values() if str(vm.number) == value), None)
        if kind is not Kind.VM or by_number is None:
            raise unknown_entity(command.name, name, value)
        parameters[name] = by_number


def _known(kind: Kind, context: Context) -> Mapping[str, object]:
    """What there is of a kind, by id."""
    known: dict[Kind, Mapping[str, object]] = {
        Kind.VM: context.world.vms,
        Kind.NETWORK: context.world.networks,
        Kind.VPC: context.world.vpcs,
        Kind.ZONE: context.world.zones,
        Kind.HOST: context.world.hosts,
        Kind.TEMPLATE: context.world.templates,
        Kind.JOB: context.jobs.all,
    }
    return known[kind]


def submit(
    context: Context,
    command: str,
    java_class: str,
    work: Work,
    *,
    instance: tuple[str, str] | None = None,
) -> Fields:
    job = context.jobs.submit(
        work,
        command=command,
        java_class=f"org.apache.cloudstack.api.command.{java_class}",
        user=context.user,
        instance_type=instance[0] if instance else None,
        instance_id=instance[1] if instance else None,
    )
    return {"jobid": job.id}
