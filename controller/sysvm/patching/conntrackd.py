"""What a new template of conntrackd's configuration means for the configuration that a router of a pair runs with.

CloudStack 4.21 CsRedundant.py makes one from the other at every command of the management server, and where the result
differs it restarts conntrackd and keepalived: a new template is a failover at an unknown moment. So the configuration
is made here in the same way and put in place with the template; the next command then finds nothing to do.
"""

TEMPLATE = "opt/cloud/templates/conntrackd.conf.templ"
CONFIGURATION = "/etc/conntrackd/conntrackd.conf"

_FILLED = ("Multicast {", "Address Ignore {")
"""Sections whose lines CsRedundant.py replaces with its own."""


def configuration(old_template: bytes, live: bytes, new_template: bytes) -> bytes | None:
    """The configuration that belongs to the new template.

    None if the live one is not what this rule makes of the old template: then nobody can tell what CloudStack's scripts
    would make of the new one.
    """
    if _filled(old_template, live) != live:
        return None
    return _filled(new_template, live)


def _filled(template: bytes, live: bytes) -> bytes | None:
    """The template with the filled sections of a configuration."""
    lines, own = template.splitlines(keepends=True), live.splitlines(keepends=True)
    for heading in _FILLED:
        place, found = _section(lines, heading), _section(own, heading)
        if place is None or found is None:
            return None
        lines[place] = own[found]
    return b"".join(lines)


def _section(lines: list[bytes], heading: str) -> slice | None:
    """Where the lines between a heading and its closing brace are."""
    start = next((number for number, line in enumerate(lines) if line.strip() == heading.encode()), None)
    if start is None:
        return None
    end = next((number for number in range(start, len(lines)) if lines[number].strip() == b"}"), None)
    return slice(start + 1, end) if end is not None else None
