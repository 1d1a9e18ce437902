#!/bin/bash
# Last boot stage: rules, the router's own configuration, services on and off, and the mark that the boot is over.

CACHE=/var/cache/cloud
TYPE=$(grep -Po '(?<![a-z])type=\K[a-zA-Z]*' $CACHE/cmdline | head -1)

[ ! -f /etc/iptables/rules.v4 ] || iptables-restore </etc/iptables/rules.v4
[ ! -f /etc/iptables/rules.nftables ] || nft -f /etc/iptables/rules.nftables

case "$TYPE" in
  router | vpcrouter | dhcpsrvr) /opt/cloud/bin/update_config.py cmd_line.json ;;
esac

# A word may name a unit that this template does not have (frr, portmap).
for service in $(cat $CACHE/enabled_svcs 2>/dev/null); do
  systemctl is-enabled --quiet "$service" 2>/dev/null || systemctl enable "$service" >/dev/null 2>&1
  systemctl start --no-block "$service" >/dev/null 2>&1
done
for service in $(cat $CACHE/disabled_svcs 2>/dev/null); do
  ! systemctl is-enabled --quiet "$service" 2>/dev/null || systemctl disable "$service" >/dev/null 2>&1
  systemctl stop --no-block "$service" >/dev/null 2>&1
done

date >$CACHE/boot_up_done
exit 0
