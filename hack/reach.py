"""How the product's patcher reaches a VM of the lab. Apart from the lab, which knows only the product's API."""

from lab import Lab
from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.patching.results import SSHAccount, Target


def target_of(lab: Lab, name: str, *, pool: str = "lab") -> Target:
    """The VM through the lab's relay, with its key and the host keys that the lab made. Raises what `Lab.vm` raises."""
    vm = lab.vm(name)
    account = SSHAccount(
        user="root",
        port=vm.port,
        private_key=lab.private_key.read_bytes(),
        host_key_policy=HostKeyPolicy.STRICT,
        known_hosts=lab.known_hosts(),
        pool=pool,
    )
    return Target(name=name, type=SystemVMType(vm.spec.type), address=str(vm.relay_address), account=account)
