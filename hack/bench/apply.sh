# Runs on a system VM (bash): the guarantees of a live patch as far as a careful person would script them.
# Arguments: folder with change.tgz, cloud-scripts.tgz, sums, signature.
set -eu
here=$1
signature=/var/cache/cloud/cloud-scripts-signature
payload=/usr/share/cloud/cloud-scripts.tgz
backup=/var/lib/loop-backup
units="apache2 haproxy dnsmasq ssh cron"

checks() {
    for check in /root/health_checks/*.py; do
        [ -x "$check" ] || continue
        case $check in */router_version_check.py) continue ;; esac
        for kind in basic advanced; do
            said=$("$check" $kind 2>/dev/null) || { [ -z "$said" ] || echo "$check"; }
        done
    done | sort -u
}

address=$(sed -n 's/.*\beth0ip=\([0-9.]*\).*/\1/p' /var/cache/cloud/cmdline)
serves() {
    { exec 8<>"/dev/tcp/$address/80" && printf 'GET / HTTP/1.0\r\n\r\n' >&8 && read -r -t 1 _ code _ <&8; } 2>/dev/null &&
        [ "$code" -lt 500 ]
}

exec 9>/run/lock/loop-patch
flock -n 9
cd /
active=$(for unit in $units; do systemctl is-active -q "$unit" && echo "$unit"; done || true)
checks > "$here/before"

# Unpack beside the targets, prove it, keep what was with owner, mode and times.
mkdir "$here/new"
tar -xzf "$here/change.tgz" -C "$here/new"
(cd "$here/new" && sha256sum --quiet -c "$here/sums")
rm -rf "$backup"
mkdir -p "$backup"
cut -c67- "$here/sums" > "$here/files"
cp -a --parents -t "$backup" $(cat "$here/files") "${payload#/}" "${signature#/}"
sync -f "$backup"

back() {
    trap - EXIT
    cp -a -t / "$backup"/*
    systemctl reload apache2 || systemctl restart apache2
    echo "went back: $1" >&2
    exit 1
}
trap 'back "interrupted"' EXIT

tr -c '\n' 0 < "$signature" > "$signature.new"
sync "$signature.new"
mv "$signature.new" "$signature"
while read -r file; do
    cp -p "$here/new/$file" "$file.loop"
    chmod --reference="$file" "$file.loop"
    chown --reference="$file" "$file.loop"
    mv "$file.loop" "$file"
done < "$here/files"
sync -f /opt/cloud

apache2ctl -t 2>/dev/null || back "apachectl -t"
systemctl reload apache2 || back "reload"
tries=0
until serves; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || back "apache2 does not answer"
    sleep 0.05
done
for unit in $active; do systemctl is-active -q "$unit" || back "$unit"; done
sha256sum --quiet -c "$here/sums" || back "content"
checks > "$here/after"
[ -z "$(comm -13 "$here/before" "$here/after")" ] || back "health checks: $(comm -13 "$here/before" "$here/after")"

cp "$here/cloud-scripts.tgz" "$payload.new"
sync "$payload.new"
mv "$payload.new" "$payload"
cp "$here/signature" "$signature.new"
sync "$signature.new"
mv "$signature.new" "$signature"
sync -f "$signature"
trap - EXIT
rm -rf "$here"
