"""A management server that stands in for CloudStack's: the API as it was recorded from a real 4.21 server.

It is not CloudStack. It answers the commands that the operator needs (`commands.COMMANDS`) with the fields, codes,
texts, paging rules and job life cycle of the recorded answers, repeats the recorded mistakes (success when nothing was
done, a patch of each router once a tier, a left-over after a failed start), and can be told to misbehave further
(`Faults`). tests/contract holds it to the recorded answers.

In a test, on a loopback port and in the test's own loop::

    from lab.cloud import World, cloud_server, Patch

    world = World(version="4.21.0.0", template_version="4.20.2")
    zone = world.add_zone("ams-1")
    world.add_host(zone, "kvm-1"), world.add_host(zone, "kvm-2")
    network = world.add_network(zone, "net-1", redundant=True)
    primary, backup = world.add_routers(network)
    world.add_ssvm(zone), world.add_cpvm(zone)
    admin = world.users[0]                       # admin.api_key, admin.secret; [1] may only read, [2] is a user

    async with cloud_server(world) as url:       # management_server(...) for restart(), idle(), jobs
        ...                                      # call it; then look at the world itself
        world.faults.patch = Patch.NOTHING       # from now on a lie; world.faults.heal()
        assert not [c for c in world.calls if c.command in CHANGING]

`world.vm(name).inside` is what a VM really runs, the other fields what the server believes. `world.upgrade(...)` is an
administrator who installs a new release. Faults can also be set from outside: `POST /lab/faults` with JSON.

Nothing here may import the operator: a stand-in that shared the client's code would share its mistakes.
"""

from lab.cloud.commands import CHANGING
from lab.cloud.faults import Answer, CutJob, Faults, Patch
from lab.cloud.machines import InMemoryMachines, MachineError, Machines, Patched, Told
from lab.cloud.records import VM, Host, Inside, Network, Template, VMState, Vpc, Zone, checksum
from lab.cloud.server import ManagementServer, cloud_server, management_server
from lab.cloud.users import Role, User
from lab.cloud.world import World

__all__ = [
    "CHANGING",
    "VM",
    "Answer",
    "CutJob",
    "Faults",
    "Host",
    "InMemoryMachines",
    "Inside",
    "MachineError",
    "Machines",
    "ManagementServer",
    "Network",
    "Patch",
    "Patched",
    "Role",
    "Template",
    "Told",
    "User",
    "VMState",
    "Vpc",
    "World",
    "Zone",
    "checksum",
    "cloud_server",
    "management_server",
]
