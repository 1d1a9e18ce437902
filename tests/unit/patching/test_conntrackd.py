"""A new template of conntrackd must not become a failover at a moment that nobody chose."""

import pytest

from sysvm.patching.conntrackd import configuration

OLD = b"""Sync {
    Mode FTFW {
        DisableExternalCache Off
    }
    Multicast {
        IPv4_interface [LINK_IP]
    }
}
General {
    HashLimit 65536
    Address Ignore {
[IGNORE_IP]
    }
}
"""
NEW = OLD.replace(b"65536", b"131072")
LIVE = OLD.replace(b"[LINK_IP]", b"10.1.1.5\n        Group 3780").replace(
    b"[IGNORE_IP]", b"        IPv4_address 127.0.0.1\n        IPv4_address 10.1.1.5"
)


def test_the_new_text_keeps_what_the_router_filled_in() -> None:
    made = configuration(OLD, LIVE, NEW)
    assert made == LIVE.replace(b"65536", b"131072")
    assert configuration(OLD, LIVE, OLD) == LIVE


@pytest.mark.parametrize(
    "live",
    [
        LIVE.replace(b"65536", b"4096"),
        LIVE.replace(b"Multicast {", b"UDP {"),
        LIVE + b"# by hand\n",
        b"",
    ],
)
def test_a_configuration_that_somebody_else_wrote_is_not_made_again(live: bytes) -> None:
    assert configuration(OLD, live, NEW) is None


def test_a_template_without_the_sections_is_not_filled() -> None:
    assert configuration(OLD, LIVE, b"General {\n}\n") is None
