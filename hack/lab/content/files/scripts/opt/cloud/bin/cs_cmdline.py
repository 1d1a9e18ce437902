"""Merging of the boot line: it replaces the old one, but a role that keepalived gave stays."""


def merge(bag, pushed):
    old = bag.get("config", {})
    config = dict(pushed["cmd_line"])
    if "redundant_state" in old and config.get("redundant_router") in ("1", "true"):
        config["redundant_state"] = old["redundant_state"]
    return {"id": "cmdline", "config": config}
