"""Payloads of two files, whose only difference is a word."""

import gzip
import io
import tarfile
from functools import cache


@cache
def archive(word: str) -> bytes:
    """A `cloud-scripts.tgz`; another word is another revision."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for path, content in (
            ("opt/cloud/bin/setup/cloud-early-config", b"#!/bin/bash\nmd5sum /usr/share/cloud/cloud-scripts.tgz\n"),
            ("opt/cloud/bin/patched.sh", f"#!/bin/sh\necho {word}\n".encode()),
        ):
            info = tarfile.TarInfo(path)
            info.mode, info.size = 0o755, len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)
