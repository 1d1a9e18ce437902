"""Tenants of the lab: machines on a guest network and one on the outside, and the traffic they make.

Whether a patch costs a tenant anything can only be seen from where tenants are. So they get network namespaces of
their own on the same bridges as the VMs, with the addresses and MACs that the routers were told about, and processes
in them that ask all the time and count.

``network``    names, addresses and ``ip`` lines (pure)
``tenancy``    ``Tenancy``: makes them in a lab that is up; ``down`` of the lab takes them away
``servers``    what answers: members of the load balancer, the outside host (a program)
``probes``     what asks and counts (a program)
``kinds``      the kinds of traffic, and what a run of the probes found

The two programs run in the lab's cgroups; their sockets are made inside the tenants' namespaces (``inside``), so that
one process can be several machines.
"""

from lab.tenants.kinds import Kind, Tally
from lab.tenants.tenancy import Run, Tenancy

__all__ = ["Kind", "Run", "Tally", "Tenancy"]
