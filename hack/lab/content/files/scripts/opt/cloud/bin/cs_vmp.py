"""Merging of VM passwords: the last one for each address."""


def merge(bag, pushed):
    bag[pushed["ip_address"]] = {"password": pushed["password"]}
    return bag
