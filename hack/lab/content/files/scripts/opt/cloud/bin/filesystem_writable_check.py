#!/usr/bin/python
"""Whether the root file system takes a write."""

import os
import sys
import tempfile

try:
    with tempfile.NamedTemporaryFile(dir="/root", prefix=".writable") as probe:
        probe.write(b"x")
        probe.flush()
        os.fsync(probe.fileno())
except OSError as error:
    print("Filesystem is not writable: %s" % error)
    sys.exit(1)
print("Filesystem is writable")
