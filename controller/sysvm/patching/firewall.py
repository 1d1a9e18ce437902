"""What a changed firewall template means for a VM that runs.

CloudStack loads a template at boot only, but configure.py reads it at every run: rules that it lists are left alone,
any other that nobody asked for is deleted (CloudStack 4.21 CsNetfilter.py, del_standard). So a rule that a new template
no longer has goes at the next command, one that is only worded otherwise goes too, and a new one comes with the next
boot. For the way in to the VM that would be the end: such a change is never made on a running VM.
"""

import re
from dataclasses import dataclass

from sysvm.api.endpoint import SystemVMType

_FOLDER = "etc/iptables/iptables-"
_NAMES: dict[SystemVMType, tuple[str, ...]] = {
    SystemVMType.ROUTER: ("router",),
    SystemVMType.VPCROUTER: ("vpcrouter",),
    SystemVMType.DHCPSRVR: ("router", "dhcpsrvr"),
    SystemVMType.ELBVM: ("elbvm",),
    SystemVMType.ILBVM: ("ilbvm",),
    SystemVMType.SECSTORAGE: ("secstorage",),
    SystemVMType.CONSOLEPROXY: ("consoleproxy",),
}
"""CloudStack 4.21 init.sh, which gives a dhcpsrvr the rules of a router."""
_MANAGEMENT_PORT = re.compile(r"(?<![0-9])3922(?![0-9])")


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs between two texts of one template; rules as `TABLE: RULE`, in their order."""

    taken: tuple[str, ...]
    """Neither in the new text, nor in the same words."""
    added: tuple[str, ...]

    @property
    def management_port(self) -> tuple[str, ...]:
        """Rules about the port that the operator and CloudStack come in by."""
        return tuple(rule for rule in self.taken + self.added if _MANAGEMENT_PORT.search(rule))


def templates_of(vm_type: SystemVMType) -> tuple[str, ...]:
    """Paths of a payload (no leading slash) that a VM of this type uses."""
    return tuple(_FOLDER + name for name in _NAMES[vm_type])


def changed_rules(live: bytes, new: bytes) -> Rules:
    """Comments, spaces and counters do not count; the order within the whole file does not either."""
    before, after = _rules(live), _rules(new)
    return Rules(
        taken=tuple(rule for rule in before if rule not in after),
        added=tuple(rule for rule in after if rule not in before),
    )


def _rules(text: bytes) -> tuple[str, ...]:
    table, found = "filter", []
    for line in text.decode("utf-8", "replace").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0].startswith("*"):
            table = words[0][1:]
        elif words[0].startswith(":"):
            found.append(f"{table}: {words[0]} {' '.join(words[1:2])}")
        elif words[0] in ("-A", "-I"):
            found.append(f"{table}: {' '.join(words)}")
    return tuple(dict.fromkeys(found))
