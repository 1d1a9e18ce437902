#!/bin/bash
# <release line>&<signature>, once the boot is over.
waited=0
while [ ! -f /var/cache/cloud/boot_up_done ] && [ $waited -lt 240 ]; do
  sleep 1
  waited=$((waited + 1))
done
printf '%s&%s\n' "$(cat /etc/cloudstack-release)" "$(cat /var/cache/cloud/cloud-scripts-signature)"
