#!/bin/bash
# Does to a system VM what CloudStack 4.21's patch-sysvms.sh does, in the same order and with the same mistakes, so that
# both ways of patching can be measured on the same VM. Each mistake is marked with its number in the table of
# lab/content/cloudstack_patch.py; do not mend any. The lab's disk has neither zip nor keytool: Python makes the zip.

cache=/var/cache/cloud
backup=$cache/bkpup_live_patch
journal=/var/log/livepatchsystemvm.log
agent=/usr/local/cloud/systemvm
signature=$cache/cloud-scripts-signature
services=$cache/enabled_svcs
type=$(grep -Po 'type=\K[a-zA-Z]*' $cache/cmdline)
patch_failed=0
went_back=0

: >$journal
note() { echo "$(date '+%F %T') $*" >>$journal; }
runs_agent() { [ "$type" = consoleproxy ] || [ "$type" = secstorage ]; }

keep_old() { # B11: nobody asks whether there is room
  mkdir -p $backup
  [ ! -d $agent/conf ] || cp -r $agent/conf $backup/conf
  if [ -d $agent ]; then
    cd $agent && python3 -m zipfile -c $backup/agent.zip ./* 2>>$journal
    cd - # prints a path between the lines of the answer
  fi
  cp $signature $backup/ 2>>$journal
  tar -zcvf $backup/cloud-scripts.tgz /etc/ /var/ /opt/ /root/ >>$journal 2>&1
}

go_back() { # B1: .tar was never written, and unzip asks stdin, which is the list of services
  note "going back"
  tar -xvf $backup/cloud-scripts.tar -C / >>$journal 2>&1
  unzip $backup/agent.zip -d $agent/ >>$journal 2>&1
  [ ! -d $backup/conf ] || cp -r $backup/conf/* $agent/conf/
  went_back=1
  restart_services
  cp $backup/cloud-scripts-signature $signature
}

restart_services() {
  local line service
  systemctl daemon-reload
  while read -r line; do
    for service in $line; do
      systemctl is-active --quiet "$service" || continue # B4: what is down stays down, and that is a success
      systemctl restart "$service" >>$journal 2>&1
      systemctl is-active --quiet "$service" && continue # B5: asked in the same moment
      note "Failed to start $service service. Patch Failed. Retrying again"
      [ $went_back = 1 ] || go_back
      patch_failed=1
      return
    done
  done <$services
  if [ "$type" = consoleproxy ]; then
    local port=8080
    [ ! -f /root/vncport ] || port=$(cat /root/vncport)
    log_it "opening $port" # B9: no such function, and one more rule each time
    iptables -A INPUT -i eth2 -p tcp -m state --state NEW -m tcp --dport "$port" -j ACCEPT
  fi
}

put_new() { # B3: no exit code is looked at
  rm -rf $agent
  echo All | unzip $cache/agent.zip -d $agent >>$journal 2>&1
  find $agent -name '*.sh' -exec chmod 555 {} + 2>>$journal
  tar -xvf $cache/cloud-scripts.tgz -C / >>$journal 2>&1 # B7, B12: over everything, and nothing is taken away
  if [ -f $backup/conf/cloud.jks ]; then                 # B8: else agent.properties is the packaged one
    cp -r $backup/conf/* $agent/conf/
  fi
  keytool -importkeystore -srckeystore /etc/ssl/certs/java/cacerts -destkeystore $agent/certs/realhostip.keystore \
    >>$journal 2>&1 || true
  md5sum $cache/cloud-scripts.tgz | cut -d' ' -f1 >$signature
  . /opt/cloud/bin/setup/patch.sh && patch_system_vm
  if runs_agent || [[ $type == *router ]]; then # B6: not for dhcpsrvr, elbvm, ilbvm
    restart_services
  fi
}

tidy_up() { # B2: after a failure too
  rm -rf $backup
  mv $cache/cloud-scripts.tgz /usr/share/cloud/cloud-scripts.tgz
  rm -f $cache/agent.zip $cache/patch-sysvms.sh
  runs_agent || rm -rf $agent
}

# B10: no lock
keep_old
put_new
tidy_up
[ $patch_failed = 1 ] || echo "version:$(cat $signature) "
exit $patch_failed
