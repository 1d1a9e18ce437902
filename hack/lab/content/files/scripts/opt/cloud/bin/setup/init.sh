#!/bin/bash
# cloud-preinit: who am I, which addresses do I have, let the host in by ssh. The lab plays KVM: the boot line is a file
# that stays over a reboot, the data bags do not; the management server sends those again.

mkdir -p /var/cache/cloud /etc/cloudstack
waited=0
while [ ! -s /var/cache/cloud/cmdline ] && [ $waited -lt 60 ]; do
  sleep 1
  waited=$((waited + 1))
done
rm -f /etc/cloudstack/*.json

. /opt/cloud/bin/setup/common.sh
log_it "cloud-preinit: $NAME is a $TYPE"
setup_common
case "$TYPE" in
  router | ilbvm | dhcpsrvr | elbvm) control=$ETH1IP ;;
  *) control=$ETH0IP ;;
esac
setup_sshd "$control"
case "$TYPE" in
  dhcpsrvr) load_rules router ;;
  *) load_rules "$TYPE" ;;
esac
systemctl enable --now --no-block ssh >/dev/null 2>&1
exit 0
