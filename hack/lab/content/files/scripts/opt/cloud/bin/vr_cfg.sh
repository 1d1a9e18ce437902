#!/bin/bash
# One configuration file with many pushes in it: <file> blocks are written, <script> blocks are run, in order. The first
# script that fails ends it with exit 1. At the end the kernel's connection table is flushed. Use: vr_cfg.sh -c FILE

log=/var/log/cloud.log
config=
while getopts c: option; do
  case $option in
    c) config=$OPTARG ;;
    *) exit 1 ;;
  esac
done
[ -f "$config" ] || { echo "no configuration file" >&2; exit 1; }

block=
target=
while IFS= read -r line || [ -n "$line" ]; do
  case "$line" in
    '<version>' | '<script>') block=${line//[<>]/} ;;
    '<file>') block=path ;;
    '</version>' | '</script>' | '</file>') block= target= ;;
    *)
      case "$block" in
        path)
          target=$line
          : >"$target"
          block=content
          ;;
        content) printf '%s\n' "$line" >>"$target" ;;
        script)
          echo "$(date '+%F %T') vr_cfg.sh: $line" >>$log
          # shellcheck disable=SC2086 # the words of the line are the command
          if ! $line </dev/null >>$log 2>&1; then
            echo "$(date '+%F %T') vr_cfg.sh: failed: $line" >>$log
            exit 1
          fi
          ;;
      esac
      ;;
  esac
done <"$config"
rm -f "$config"
conntrackd -F >/dev/null 2>&1 || conntrack -F >/dev/null 2>&1
exit 0
