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


# ------------------------------------------------------------------------------------------ debs inside agent.zip

PACKAGES_INI = b"""[python-is-python3]
debian_os=11
package_name=python-is-python3
file_name=python-is-python3_3.9.2-1_all.deb
conflicted_packages=python-is-python2

[python3-netaddr]
debian_os=11
package_name=python3-netaddr
file_name=python3-netaddr_0.7.19-5_all.deb
conflicted_packages=
"""
PYTHON_DEB = "packages/python-is-python3_3.9.2-1_all.deb"
NETADDR_DEB = "packages/python3-netaddr_0.7.19-5_all.deb"
NETADDR = "usr/lib/python3/dist-packages/netaddr/__init__.py"


@functools.cache
def _small_deb(name: str, version: str, words: str, links: tuple[tuple[str, str], ...], content: bytes | None) -> bytes:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is missing: it makes the packages to install")
    with tempfile.TemporaryDirectory() as work:
        top = Path(work, "top")
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\n"
            f"{words}Description: A package of a test\n Small.\n"
        )
        files_of_it = {"DEBIAN/control": control.encode(), f"usr/share/doc/{name}/copyright": b"none\n"}
        for path, text in (files_of_it | ({NETADDR: content} if content is not None else {})).items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(text)
        for path, target in links:
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).symlink_to(target)
        made = Path(work, "made.deb")
        subprocess.run(
            ["dpkg-deb", "-Zxz", "--root-owner-group", "--build", str(top), str(made)], check=True, capture_output=True
        )
        return made.read_bytes()


def small_deb(
    name: str,
    version: str,
    *,
    words: str = "",
    links: dict[str, str] | None = None,
    content: bytes | None = None,
) -> bytes:
    """A package with `links`, and `content` as the module netaddr. `words`: more lines of its control file."""
    return _small_deb(name, version, words, tuple((links or {}).items()), content)


_ONE_PYTHON = "Provides: python\nConflicts: python\n"


def python_deb(major: int = 3) -> bytes:
    """python-is-python2 or 3: nothing but the link, and in conflict with each other, as Debian has them."""
    version = {2: "2.7.18-9", 3: "3.9.2-1"}[major]
    return small_deb(f"python-is-python{major}", version, words=_ONE_PYTHON, links={"usr/bin/python": f"python{major}"})


def netaddr_deb(words: str = "") -> bytes:
    return small_deb("python3-netaddr", "0.7.19-5", words=words, content=b"VERSION = '0.7.19'\n")


def debian_11_agent(change: dict[str, bytes | None] | None = None) -> bytes:
    """agent.zip with the packages that CloudStack ships for Debian 11; `change`: other members, None for none."""
    members: dict[str, bytes | None] = {
        "_run.sh": b"#!/bin/sh\n",
        "packages/packages.ini": PACKAGES_INI,
        PYTHON_DEB: python_deb(),
        NETADDR_DEB: netaddr_deb(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (members | (change or {})).items():
            if content is not None:
                archive.writestr(path, content)
    return buffer.getvalue()
