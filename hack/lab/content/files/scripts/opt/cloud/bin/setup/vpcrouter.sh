#!/bin/bash
# A VPC's router: eth0 control; the public side and the tiers arrive later, by push.
. /opt/cloud/bin/setup/common.sh
. /opt/cloud/bin/setup/patch.sh

patch_router
rm -f /etc/keepalived/keepalived.conf
setup_dnsmasq /etc/vpcdnsmasq.conf
setup_apache2_common
setup_forwarding 1
if [ "$REDUNDANT_ROUTER" = 1 ]; then
  services "haproxy apache2 frr" "cloud nfs-common portmap"
  services "keepalived" "dnsmasq conntrackd"
else
  services "haproxy apache2 frr" "cloud nfs-common portmap"
  services "dnsmasq" "keepalived conntrackd"
fi
