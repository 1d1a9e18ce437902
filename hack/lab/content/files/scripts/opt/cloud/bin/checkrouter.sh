#!/bin/bash
# The role of a redundant router as the management server sees it; keepalived itself is not asked.
state() { sed -n 's/.*"redundant_state": "\([A-Z]*\)".*/\1/p' /etc/cloudstack/cmdline.json 2>/dev/null | head -1; }

STATUS=UNKNOWN
if [ "$(state)" = FAULT ]; then
  STATUS=FAULT
elif grep -q 'type=vpcrouter' /var/cache/cloud/cmdline; then
  if ip -o link show dev eth1 2>/dev/null | grep -q 'state UP'; then STATUS=PRIMARY; else STATUS=BACKUP; fi
else
  if [ "$(ip -4 -o addr show dev eth0 | grep -c ' inet ')" -ge 2 ]; then STATUS=PRIMARY; else STATUS=BACKUP; fi
fi
echo "Status: $STATUS"
