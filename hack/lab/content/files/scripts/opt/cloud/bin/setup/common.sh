#!/bin/bash
# Sourced by init.sh and by every <type>.sh. Sourcing acts: the boot line is parsed, exported in capitals and written
# to cmd_line.json, and root's authorized_keys becomes what it says.

CMDLINE_FILE=${CMDLINE_FILE:-/var/cache/cloud/cmdline}
CACHE=/var/cache/cloud

log_it() {
  echo "$(date '+%F %T') $*" >>/var/log/cloud.log
}

parse_cmd_line() {
  local word key value first=1
  local json="$CACHE/cmd_line.json.part"
  printf '{"type": "cmdline", "cmd_line": {' >"$json"
  for word in $(cat "$CMDLINE_FILE"); do
    case "$word" in *=*) ;; *) continue ;; esac
    key=${word%%=*}
    value=${word#*=}
    printf -v "$(echo "$key" | tr 'a-z-' 'A-Z_')" '%s' "$value"
    [ $first = 1 ] || printf ', ' >>"$json"
    first=0
    printf '"%s": "%s"' "$key" "$value" >>"$json"
  done
  printf '}}\n' >>"$json"
  mv "$json" "$CACHE/cmd_line.json"
  if [ -n "$AUTHORIZED_KEY" ]; then
    mkdir -p -m 700 /root/.ssh
    echo "$AUTHORIZED_KEY" | base64 -d >/root/.ssh/authorized_keys.part
    chmod 600 /root/.ssh/authorized_keys.part
    mv /root/.ssh/authorized_keys.part /root/.ssh/authorized_keys
  fi
  : >/root/.ssh/known_hosts
}

prefix_of() { # netmask -> prefix length
  local octet bits=0
  for octet in ${1//./ }; do
    while [ "$octet" -gt 0 ]; do
      bits=$((bits + octet % 2))
      octet=$((octet / 2))
    done
  done
  echo $bits
}

setup_interface() { # ethN ip mask
  [ -n "$2" ] && [ "$2" != 0.0.0.0 ] && [ -e "/sys/class/net/$1" ] || return 0
  ip addr replace "$2/$(prefix_of "$3")" brd + dev "$1"
  ip link set "$1" up
}

setup_common() {
  hostname "$NAME" 2>/dev/null
  echo "$NAME" >/etc/hostname
  setup_interface eth0 "$ETH0IP" "$ETH0MASK"
  setup_interface eth1 "$ETH1IP" "$ETH1MASK"
  if [ "$REDUNDANT_ROUTER" != 1 ]; then # of a pair, only the PRIMARY has its public side up
    setup_interface eth2 "$ETH2IP" "$ETH2MASK"
    [ -z "$GATEWAY" ] || [ "$GATEWAY" = 0.0.0.0 ] || ip route replace default via "$GATEWAY" 2>/dev/null
  fi
}

setup_sshd() { # control address: sshd listens there and nowhere else
  [ -n "$1" ] || return 0
  sed -i -e "s/^#\?ListenAddress .*/ListenAddress $1/" /etc/ssh/sshd_config
  grep -q "^ListenAddress $1$" /etc/ssh/sshd_config || sed -i "/^Port 3922/a ListenAddress $1" /etc/ssh/sshd_config
}

setup_apache2_common() { # the only Listen lines are those of the virtual hosts
  sed -i 's/^Include ports.conf.*/# Include ports.conf/' /etc/apache2/apache2.conf
  rm -f /etc/apache2/ports.conf /etc/apache2/sites-enabled/000-default.conf /etc/apache2/conf-enabled/other-vhosts-access-log.conf
  [ -e /etc/apache2/mods-enabled/rewrite.load ] || a2enmod -q rewrite >/dev/null 2>&1
}

setup_dnsmasq() { # template
  local device dns
  cp "$1" /etc/dnsmasq.conf.part
  : >/etc/dnsmasq-resolv.conf
  for dns in $DNS1 $DNS2; do echo "nameserver $dns" >>/etc/dnsmasq-resolv.conf; done
  [ -z "$DOMAIN" ] || printf 'domain=%s\nlocal=/%s/\nexpand-hosts\n' "$DOMAIN" "$DOMAIN" >>/etc/dnsmasq.conf.part
  printf 'interface=lo\n' >>/etc/dnsmasq.conf.part
  for device in "${@:2}"; do printf 'interface=%s\n' "$device" >>/etc/dnsmasq.conf.part; done
  touch /etc/dhcphosts.txt /etc/dhcpopts.txt
  mv /etc/dnsmasq.conf.part /etc/dnsmasq.conf
  [ -z "$ETH0IP" ] || grep -q data-server /etc/hosts || echo "${GUESTGW:-$ETH0IP} data-server" >>/etc/hosts
}

setup_forwarding() { # 0 or 1
  echo "$1" >/proc/sys/net/ipv4/ip_forward
}

services() { # words for enabled_svcs, words for disabled_svcs; added to what is there
  [ -z "$1" ] || echo "$1" >>$CACHE/enabled_svcs
  [ -z "$2" ] || echo "$2" >>$CACHE/disabled_svcs
}

load_rules() { # type: what postinit.sh will restore
  cp "/etc/iptables/iptables-$1" /etc/iptables/rules.v4
}

parse_cmd_line
