#!/bin/bash
# An isolated network's router: eth0 guest, eth1 control, eth2 public.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_router
setup_dnsmasq /etc/dnsmasq.conf.tmpl eth0
setup_apache2_common
setup_forwarding 1
if [ "$REDUNDANT_ROUTER" = 1 ]; then
  services "haproxy apache2 frr" "cloud nfs-common portmap"
  services "keepalived" "dnsmasq conntrackd"
else
  services "haproxy apache2 frr" "cloud nfs-common portmap"
  services "dnsmasq" "keepalived conntrackd"
fi
