#!/bin/bash
# Called by cloud-early-config once the scripts are the right ones: settings of the kernel, the agent, the role.

CACHE=/var/cache/cloud
AGENT=/usr/local/cloud/systemvm
TYPE=$(grep -Po '(?<![a-z])type=\K[a-zA-Z]*' $CACHE/cmdline | head -1)

config_sysctl() { # the file by memory size; set only what is the namespace's own: the rest is the whole machine's
  local line pressure=200
  [ "$(awk '/^MemTotal/ {print $2}' /proc/meminfo)" -gt 500000 ] || pressure=2000
  sed -i "s/^vm.vfs_cache_pressure=.*/vm.vfs_cache_pressure=$pressure/" /etc/sysctl.conf
  grep -E '^net\.ipv4\.' /etc/sysctl.conf | while read -r line; do sysctl -qw "$line" 2>/dev/null; done
}

patch_agent() {
  [ -f $CACHE/agent.zip ] || return 0
  mkdir -p $AGENT
  unzip -qo $CACHE/agent.zip -d $AGENT
  find $AGENT -name '*.sh' -exec chmod 555 {} +
}

config_agent() { # every word of the boot line becomes a property
  local word
  for word in $(cat $CACHE/cmdline); do
    case "$TYPE $word" in
      "secstorage instance="* | "secstorage resource="*) continue ;;
    esac
    echo "$word"
  done >>$AGENT/conf/agent.properties
}

rm -f $CACHE/enabled_svcs $CACHE/disabled_svcs
chmod -x /etc/systemd/system/cloud*.service
if [ -f $CACHE/patch.required ]; then
  case "$TYPE" in
    secstorage | consoleproxy) patch_agent && config_agent ;;
  esac
fi
config_sysctl
if [ -x "/opt/cloud/bin/setup/$TYPE.sh" ]; then
  "/opt/cloud/bin/setup/$TYPE.sh"
fi
exit 0
