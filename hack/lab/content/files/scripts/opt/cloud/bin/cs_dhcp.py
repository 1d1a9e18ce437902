"""Merging of DHCP entries: by address, and a MAC has one address only."""


def merge(bag, pushed):
    for entry in pushed.get("entries", []):
        address, mac = entry["ipv4_address"], entry["mac_address"]
        for other in [key for key, old in bag.items() if key != "id" and old["mac_address"] == mac]:
            del bag[other]
        if not entry.get("remove"):
            bag[address] = entry
    return bag
