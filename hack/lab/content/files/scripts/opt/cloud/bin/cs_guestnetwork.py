"""Merging of guest networks: entry by entry, a revoked one goes."""


def merge(bag, pushed):
    for key, entry in pushed.items():
        if key == "type":
            continue
        if isinstance(entry, dict) and (entry.get("remove") or entry.get("revoke")):
            bag.pop(key, None)
        else:
            bag[key] = entry
    return bag
