"""Template versions and from where a live patch is possible.

CloudStack's rows have two axes: the template a VM was created from, and the release that would be installed. A payload
of 4.20 brings packages for Debian 11 and none for Debian 10: the same template may take one release and not the next.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from sysvm.api.reasons import Reason
from sysvm.api.template import CompatibilityRow

_LEADING_NUMBERS = re.compile(r"^[0-9]+(?:\.[0-9]+){1,3}(?=$|[-+_~])")
_RELEASE_LINE = re.compile(r"^cloudstack\s+release\s+(\S+)", re.IGNORECASE)


def release_version(line: str) -> str | None:
    """The version in a line of /etc/cloudstack-release (`Cloudstack Release 4.20.1 Tue Apr 15 ...`), None if none.

    CloudStack takes the third word (CloudStack 4.21 CloudStackVersion.java, trimRouterVersion). A suffix such as
    -SNAPSHOT is dropped.
    """
    match = _RELEASE_LINE.match(line.strip())
    if match is None:
        return None
    numbers = _LEADING_NUMBERS.match(match.group(1))
    return numbers.group(0) if numbers else None


@lru_cache(maxsize=256)
def parse_version(text: str) -> Version | None:
    """`4.20.1`, also with a suffix (`4.20.1-SNAPSHOT`) that is ignored; None if it is not a version."""
    numbers = _LEADING_NUMBERS.match(text.strip())
    try:
        return Version(numbers.group(0)) if numbers else None
    except InvalidVersion:
        return None


@lru_cache(maxsize=256)
def parse_range(text: str) -> SpecifierSet:
    """`>=4.16,<4.20`. Raises ValueError on anything that is not a version range."""
    try:
        found = SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is not a version range such as >=4.16,<4.20") from error
    if not len(found):
        raise ValueError("an empty version range matches everything: write >=0 if that is meant")
    return found


@lru_cache(maxsize=4096)
def in_range(version: Version, range_: str) -> bool:
    """Whether the version lies in the range. Raises ValueError on a bad range."""
    return parse_range(range_).contains(version, prereleases=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a live patch from a template to a release is possible."""

    supported: bool
    warning: str | None = None
    """What a person should know although it is supported."""
    reason: Reason | None = None
    """Why it is not: VersionUnknown or NotCompatible."""
    message: str = ""
    """The row's own words or ours, as the end of a sentence."""


def compatibility(rows: Iterable[CompatibilityRow], template_version: str | None, release: str) -> Verdict:
    """The first row that matches both versions decides; no row, or a version that cannot be read, is not supported."""
    have = parse_version(template_version) if template_version else None
    want = parse_version(release)
    if have is None or want is None:
        unread = template_version if have is None else release
        return Verdict(
            supported=False,
            reason=Reason.VERSION_UNKNOWN,
            message=f"{unread!r} is not a version" if unread else "its template version is not known",
        )
    for row in rows:
        try:
            hit = in_range(have, row.from_) and in_range(want, row.to)
        except ValueError as error:
            return Verdict(supported=False, reason=Reason.NOT_COMPATIBLE, message=f"compatibility table: {error}")
        if not hit:
            continue
        if row.supported:
            return Verdict(supported=True, warning=row.warning)
        return Verdict(
            supported=False,
            reason=Reason.NOT_COMPATIBLE,
            message=row.reason or f"the compatibility table excludes templates {row.from_} for releases {row.to}",
        )
    return Verdict(
        supported=False, reason=Reason.NOT_COMPATIBLE, message="no row of the compatibility table covers the two"
    )


def is_same(version: str | None, other: str) -> bool:
    """Whether both name one release: a server of 4.21.0.0-SNAPSHOT notes 4.21.0.0 of the routers that it programs."""
    have, want = parse_version(version) if version else None, parse_version(other)
    return version == other if have is None or want is None else have == want


def is_older(version: str | None, than: str) -> bool:
    """Whether `version` is older than `than`; False when either cannot be read."""
    have, want = parse_version(version) if version else None, parse_version(than)
    return have is not None and want is not None and have < want
