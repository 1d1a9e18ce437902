"""cloudstack-common as packages, made by those who make them: dpkg-deb, and rpm-rs for want of an rpmbuild."""

from __future__ import annotations

import functools
import gzip
import io
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import rpm_rs

from sysvm.patching.payload import EARLY_CONFIG

VMS = "usr/share/cloudstack-common/vms"
DEB_PACKERS = ("gzip", "xz", "zstd", "none")
RPM_PACKERS = ("gzip", "xz", "zstd", "none", "v4 gzip", "v4 zstd")
"""rpm 6 writes the v6 format, CloudStack's packages are v4."""
_RPM_NAMES = {"gzip": "Gzip", "xz": "Xz", "zstd": "Zstd", "none": "NONE"}


@functools.cache
def scripts(comment: bytes = b"") -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in ((EARLY_CONFIG, b"md5sum x\n"), ("opt/cloud/bin/configure.py", b"pass\n" + comment)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


@functools.cache
def agent() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_run.sh", b"#!/bin/sh\n" * 9)
        archive.writestr("cloud.jar", bytes(range(256)) * 2000)
    return buffer.getvalue()


def files(*, with_agent: bool = True) -> dict[str, bytes]:
    """What a small cloudstack-common holds: the payload, and much else before and after it."""
    found = {
        "etc/cloudstack/common.conf": b"a=b\n",
        f"{VMS}/cloud-scripts.tgz": scripts(),
        f"{VMS}/patch-sysvms.sh": b"#!/bin/bash\n",
        "usr/share/cloudstack-common/scripts/vm/a.sh": b"#!/bin/sh\n",
        "usr/share/zzz": b"last\n",
    }
    return found | ({f"{VMS}/agent.zip": agent()} if with_agent else {})


@functools.cache
def deb(packer: str = "xz", *, name: str = "cloudstack-common", with_agent: bool = True) -> bytes:
    return deb_of(files(with_agent=with_agent), packer, name=name)


def deb_of(
    content: dict[str, bytes],
    packer: str = "xz",
    *,
    name: str = "cloudstack-common",
    links: dict[str, str] | None = None,
) -> bytes:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is missing: it makes the packages to read")
    with tempfile.TemporaryDirectory() as work:
        top = Path(work, "top")
        for path, text in {**content, "DEBIAN/control": _control(name)}.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(text)
        for path, target in (links or {}).items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).symlink_to(target)
        made = Path(work, "made.deb")
        done = subprocess.run(
            ["dpkg-deb", f"-Z{packer}", "--root-owner-group", "--build", str(top), str(made)],
            capture_output=True,
            text=True,
            check=False,
        )
        if "unknown compression type" in done.stderr:
            pytest.skip(f"this dpkg-deb knows no {packer}")
        assert done.returncode == 0, done.stderr
        return made.read_bytes()


def _control(name: str) -> bytes:
    return (
        f"Package: {name}\nVersion: 4.20.2.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\n"
        "Description: A package to read\n Not to install.\n"
    ).encode()


@functools.cache
def rpm(packer: str = "gzip", *, name: str = "cloudstack-common", with_agent: bool = True) -> bytes:
    return rpm_of(files(with_agent=with_agent), packer, name=name)


def rpm_of(
    content: dict[str, bytes],
    packer: str = "gzip",
    *,
    name: str = "cloudstack-common",
    links: dict[str, str] | None = None,
) -> bytes:
    builder = rpm_rs.PackageBuilder(name, "4.20.2.0", "Apache-2.0", "x86_64", "A package to read")
    builder.release("1")
    version, _, packer = packer.rpartition(" ")
    builder.using_config(
        rpm_rs.BuildConfig(
            format=rpm_rs.RpmFormat.V4 if version else rpm_rs.RpmFormat.V6,
            compression=getattr(rpm_rs.CompressionType, _RPM_NAMES[packer]),
            source_date=1_600_000_000,
        )
    )
    for path, text in content.items():
        builder.with_file_contents(text, rpm_rs.FileOptions.new(f"/{path}"))
    for path, target in (links or {}).items():
        builder.with_symlink(rpm_rs.FileOptions.symlink(f"/{path}", target))
    return bytes(builder.build().to_bytes())
