"""Merging of VPN users: the push replaces what was there."""


def merge(bag, pushed):
    content = {key: value for key, value in pushed.items() if key != "type"}
    return dict(content, id=bag.get("id"))
