"""A small cloud on one machine: system VMs that boot systemd, and the control plane that patches them.

Everything here stands in for something real, so nothing here may import the code that is tested with it: of our own
packages only `sysvm.api`. Needs root on Linux and leaves the host as it found it: its own mount, network and cgroup
trees, its own package roots under the cache folder, and `down` takes all of it away again.
"""

from lab.guest import Entry, GuestError
from lab.machines import Lab, LabError
from lab.preflight import LabUnavailable
from lab.relay import Fault, Traffic
from lab.spec import DEFAULT_FLEET, VM, LayOut, SystemVMType, VMSpec

__all__ = [
    "DEFAULT_FLEET",
    "VM",
    "Entry",
    "Fault",
    "GuestError",
    "Lab",
    "LabError",
    "LabUnavailable",
    "LayOut",
    "SystemVMType",
    "Traffic",
    "VMSpec",
]
