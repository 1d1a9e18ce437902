#!/bin/bash
# Sourced at boot by every <type>.sh and by a stock live patch.

patch_sshd_config() {
  if ssh -Q PubkeyAcceptedAlgorithms >/dev/null 2>&1; then
    grep -q '^PubkeyAcceptedAlgorithms=+ssh-rsa' /etc/ssh/sshd_config && return
    sed -i '/^PubkeyAuthentication yes/a PubkeyAcceptedAlgorithms=+ssh-rsa' /etc/ssh/sshd_config
    systemctl restart --no-block ssh
  else
    sed -i '/^PubkeyAcceptedAlgorithms/d' /etc/ssh/sshd_config
  fi
}

install_packages() { # packages.ini names a Debian release for each package; only ours are installed
  local folder=/usr/local/cloud/systemvm/packages release file
  [ -f $folder/packages.ini ] || return 0
  release=$(cut -d. -f1 /etc/debian_version)
  awk -F= -v release="$release" '
    /^\[/ { wanted = 0 } $1 == "debian_os" { wanted = ($2 == release) } wanted && $1 == "file_name" { print $2 }
  ' $folder/packages.ini | while read -r file; do dpkg -i "$folder/$file"; done
}

patch_system_vm() {
  patch_sshd_config
  install_packages
}

patch_router() {
  patch_sshd_config
  if [ -f /var/cache/cloud/agent.zip ]; then
    mkdir -p /usr/local/cloud/systemvm
    unzip -qo /var/cache/cloud/agent.zip -d /usr/local/cloud/systemvm
    install_packages
  fi
}
