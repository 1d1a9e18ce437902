"""What the live patch costs beside what a person would use instead, measured in one run on the same system VMs.

    .venv/bin/python -m bench --vms 50          (or: make bench VMS=50)

``fleet``       the lab's VMs as every contestant reaches them: by the relay, which counts bytes, or inside its network
``change``      the payloads: a 10-file change that is new in every run, a full agent, one jar
``measure``     wall time, processor time of the controller's side, bytes on the wire
``ours``        the operator's own code, in a process of its own so that its processor time is exact
``rivals``      Ansible, shell loops, one VM after the other
``cases``       what is compared with what
``report``      the page

Only ratios within one run mean anything: all VMs, the controller and the relay share the processors of one machine.
"""
