"""Who may call the stand-in, and what: keys, the three roles that were recorded, and roles that lack something."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_USER_COMMANDS = frozenset(
    {
        "listApis",
        "listAsyncJobs",
        "listCapabilities",
        "listEvents",
        "listNetworks",
        "listTemplates",
        "listVPCs",
        "listZones",
        "queryAsyncJobResult",
        "registerTemplate",
        "restartNetwork",
        "restartVPC",
    }
)
_READING = ("list", "query", "get")


class Role(StrEnum):
    """Roles every CloudStack has."""

    ROOT_ADMIN = "Root Admin"
    READ_ONLY_ADMIN = "Read-Only Admin - Default"
    USER = "User"


@dataclass(eq=False, kw_only=True)
class User:
    """One user with keys. `lacks` names commands that the role would have and this one has not."""

    id: str
    name: str
    api_key: str
    secret: str
    role: Role
    lacks: frozenset[str] = frozenset()
    enabled: bool = True

    def may(self, command: str) -> bool:
        if command in self.lacks:
            return False
        if self.role is Role.USER:
            return command in _USER_COMMANDS
        return self.role is Role.ROOT_ADMIN or command.startswith(_READING)


def default_users() -> list[User]:
    """A root admin, an admin who may only read, and a user, as `World.users`, in this order."""
    return [
        User(
            id=f"00000000-0000-4000-8000-00000000000{number}",
            name=name,
            api_key=f"{name}-key",
            secret=f"{name}-secret",
            role=role,
        )
        for number, (name, role) in enumerate(
            [("admin", Role.ROOT_ADMIN), ("auditor", Role.READ_ONLY_ADMIN), ("tenant", Role.USER)], start=1
        )
    ]
