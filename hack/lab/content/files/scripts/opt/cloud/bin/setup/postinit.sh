#!/bin/bash
# Last boot stage: rules, the router's own configuration, services on and off, and the mark that the boot is over.

CACHE=/var/cache/cloud
TYPE=$(grep -Po '(?<![a-z])type=\K[a-zA-Z]*' $CACHE/cmdline | head -1)

[ ! -f /etc/iptables/rules.v4 ] || iptables-restore </etc/iptables/rules.v4
[ ! -f /etc/iptables/rules.nftables ] || nft -f /etc/iptables/rules.nftables

case "$TYPE" in
  router | vpcrouter | dhcpsrvr) /opt/cloud/bin/update_config.py cmd_line.json ;;
esac

for service in $(cat $CACHE/enabled_svcs 2>/dev/null); do
  systemctl enable --now --no-block "$service" >/dev/null 2>&1
done
for service in $(cat $CACHE/disabled_svcs 2>/dev/null); do
  systemctl disable --now --no-block "$service" >/dev/null 2>&1
done

date >$CACHE/boot_up_done
exit 0
