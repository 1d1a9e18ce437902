"""What lies inside the lab's system VMs, and the payloads that change it.

Everything here is ours: scripts with CloudStack's names, paths and behaviour, small but real. It is kept apart from the
machines (network namespaces, overlays, nspawn) so that payloads can be built and inspected anywhere, without root and
without a VM, and so that the same content can be laid into any root file system.

``payloads``   builds ``cloud-scripts.tgz`` and ``agent.zip`` of a release, in the shape of the real ones
``releases``   the named releases (old, new, broken, mended) and how to derive others
``hostile``    archives that a careful reader must refuse
``layout``     ``lay_out``: a template of one release after its first start by CloudStack, written into a root
``addresses``  what ``lay_out`` must know of the VM's networks

Call ``layout.lay_out`` before the first boot::

    lay_out(root, vm, network=Addressing(...), release=releases.OLD, authorized_key=public_key_line, host_key=private_key_pem)

Nothing in this package needs root but ``lay_out``, which sets owners.
"""
