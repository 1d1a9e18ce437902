#!/usr/bin/python
"""Takes one pushed file out of /var/cache/cloud, merges it and applies the bag: update_config.py <name>.json[.<uuid>]."""

import logging
import os
import sys

import configure
import merge


def main(argument):
    name = os.path.basename(argument)
    if not os.path.isfile(os.path.join(merge.CACHE, name)):
        print("update_config.py: %s is not in %s" % (name, merge.CACHE))
        return 1
    logging.basicConfig(
        filename="/var/log/cloud.log",
        level=logging.INFO,
        format="%(asctime)s update_config.py %(levelname)s %(message)s",
    )
    merge.take(name)
    configure.main(name.split(".json")[0] + ".json")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: update_config.py <name>.json")
    sys.exit(main(sys.argv[1]))
