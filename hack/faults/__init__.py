"""Proof by exhaustion that a live patch leaves a system VM old or new under any fault, as a table.

A row is a fault, a trial is one VM that meets it once at one place. After each trial somebody recovers the VM (by turns
the operator's next session and the next boot), and everything is compared with old and new: content, owner, mode,
links, extended attributes, hard links, signature, payload archive, service states. What is neither fails the run.

Most rows use the scratch VM of `tests/remote/vm.py`, a folder with a systemd made of files, thousands of times; the
rows of `machines.py` use the lab's system VMs, which boot a real systemd and are patched over SSH.
"""
