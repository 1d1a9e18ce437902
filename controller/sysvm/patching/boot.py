"""The VM's boot arguments: what it is and which addresses its services answer on.

CloudStack writes them once per boot to `/var/cache/cloud/cmdline`, one line of `key=value` words (CloudStack 4.21
init.sh). They decide whether the machine that answers is the one that was meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sysvm.api.endpoint import SystemVMType

CMDLINE_PATH = "/var/cache/cloud/cmdline"


@dataclass(frozen=True, slots=True)
class BootArguments:
    """`words` holds secrets (keystore password): never shown as a whole."""

    words: Mapping[str, str] = field(repr=False)

    @property
    def type(self) -> SystemVMType | None:
        """None: no `type=` word, or one that no CloudStack has."""
        try:
            return SystemVMType(self.words.get("type", ""))
        except ValueError:
            return None

    @property
    def name(self) -> str:
        """The VM's name in CloudStack, such as r-15-VM; empty: there is no such word."""
        return self.words.get("name", "")

    @property
    def redundant(self) -> bool:
        return self.words.get("redundant_router") == "true"

    def address(self, nic: str) -> str | None:
        """IPv4 address of `eth0`, `eth1`, ...; None if it has none at boot."""
        value = self.words.get(f"{nic}ip", "")
        return value if value not in ("", "0.0.0.0") else None


def parse_boot_arguments(text: bytes) -> BootArguments:
    """Never fails: what is no `key=value` word is ignored; the last of a key counts."""
    pairs = (word.partition("=") for word in text.decode("utf-8", "replace").split())
    return BootArguments(MappingProxyType({key: value for key, sign, value in pairs if sign}))
