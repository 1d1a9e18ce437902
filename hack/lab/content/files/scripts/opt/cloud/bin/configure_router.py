#!/usr/bin/python
"""What keepalived calls at every change of role: configure_router.py --primary | --backup | --fault."""

import fcntl
import logging
import sys

from cs.CsAddress import CsAddress
from cs.CsConfig import CsConfig
from cs.CsRedundant import CsRedundant

ROLES = {"--primary": "set_primary", "--master": "set_primary", "--backup": "set_backup", "--fault": "set_fault"}


def main(role):
    logging.basicConfig(
        filename="/var/log/cloud.log",
        level=logging.INFO,
        format="%(asctime)s configure_router.py %(levelname)s %(message)s",
    )
    with open("/tmp/primary_lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        logging.info("becoming %s", role.lstrip("-"))
        config = CsConfig()
        config.cmdline.set_state("BACKUP")
        CsAddress(config).process()
        getattr(CsRedundant(config), ROLES[role])()
        logging.info("is %s", role.lstrip("-"))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ROLES:
        sys.exit("usage: configure_router.py --primary|--backup|--fault")
    main(sys.argv[1])
