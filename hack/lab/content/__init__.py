"""What lies inside the lab's system VMs, and the payloads that change it.

Everything here is ours: scripts with CloudStack's names, paths and behaviour, small but real. It is kept apart from the
machines (network namespaces, overlays, nspawn) so that payloads can be built and inspected anywhere, without root and
without a VM, and so that the same content can be laid into any root file system.

``payloads``   builds ``cloud-scripts.tgz`` and ``agent.zip`` of a release, in the shape of the real ones
``releases``   the named releases (old, new, broken, mended) and how to derive others
``hostile``    archives that a careful reader must refuse
``layout``     ``lay_out``: a template of one release after its first start by CloudStack, written into a root
``bootline``   what the management server tells a VM, derived from the VM's NICs

The working files lie under ``files/``, mirrored by path; what they leave out of the real payload is filler of its size.
Nothing in this package needs root but ``lay_out``, which sets owners.
"""

from lab.content.layout import lay_out

__all__ = ["lay_out"]
