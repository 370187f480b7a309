#!/bin/bash
# Starts a throw-away Ceph on loopback: one monitor, one OSD in memory, one S3 gateway. No systemd, no manager.
#   usage: start_ceph.sh DIRECTORY GATEWAY_PORT MONITOR_PORT
# Leaves the daemons running and their process ids in DIRECTORY/{mon.a,osd.0,client.rgw}.pid; when anything fails,
# ends those it had started. S3 keys: ak / sksksksk. End the OSD before the monitor, or it waits for it.
set -eu
dir=${1:?DIRECTORY}; port=${2:?GATEWAY_PORT}; mon_port=${3:?MONITOR_PORT}
mkdir -p "$dir"/mon/a "$dir"/osd/0 "$dir"/rgw "$dir"/log "$dir"/sock "$dir"/crash
cd "$dir"

give_up() {
    echo "Ceph did not start; see $dir/log" >&2
    for name in client.rgw osd.0 mon.a; do
        [ -s "$name.pid" ] && kill -9 "$(cat "$name.pid")" || true
    done
}
trap 'status=$?; [ $status -eq 0 ] || give_up' EXIT

fsid=$(cat /proc/sys/kernel/random/uuid)
cat > ceph.conf <<CONF
[global]
fsid = $fsid
mon initial members = a
mon host = [v2:127.0.0.1:$mon_port/0]
ms bind ipv6 = false
ms mon client mode = crc
ms client mode = crc
ms service mode = crc
ms cluster mode = crc
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 1
mon tick interval = 1
paxos propose interval = 0.02
paxos min wait = 0.01
run dir = $dir/sock
admin socket = $dir/sock/\$cluster-\$name.asok
pid file = $dir/\$name.pid
log file = $dir/log/\$name.log
crash dir = $dir/crash
keyring = $dir/keyring
mon data = $dir/mon/a
osd data = $dir/osd/0
osd objectstore = memstore
memstore device bytes = 1073741824
osd memory target = 939524096
osd class load list = *
osd class default list = *
[client.rgw]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
rgw enable usage log = false
rgw enable ops log = false
rgw bucket default quota max objects = -1
rgw cache enabled = true
rgw thread pool size = 64
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw dynamic resharding = false
rgw run sync thread = false
rgw zone root pool = .rgw.root
CONF

ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon "allow *" > log/setup.log
for name in client.admin client.rgw; do
    ceph-authtool keyring --gen-key -n $name --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >> log/setup.log
done
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port]" monmap >> log/setup.log
ceph-mon -c ceph.conf --mkfs -i a --monmap monmap --keyring keyring >> log/setup.log 2>&1
ceph-mon -c ceph.conf -i a >> log/setup.log 2>&1

export CEPH_ARGS="-c $dir/ceph.conf"
uuid=$(cat /proc/sys/kernel/random/uuid)
timeout 60 ceph osd new "$uuid" >> log/setup.log 2>&1
ceph-osd -c ceph.conf -i 0 --mkfs --osd-uuid "$uuid" --osd-objectstore memstore >> log/setup.log 2>&1
timeout 60 ceph osd crush add osd.0 1.0 root=default host=localhost >> log/setup.log 2>&1
ceph-osd -c ceph.conf -i 0 >> log/setup.log 2>&1
for _ in $(seq 100); do
    timeout 10 ceph osd stat 2>> log/setup.log | grep -q '1 up' && break
    sleep 0.2
done

for pool in .rgw.root default.rgw.log default.rgw.control default.rgw.meta default.rgw.buckets.index \
    default.rgw.buckets.data default.rgw.buckets.non-ec; do
    echo "osd pool create $pool 4"
    echo "osd pool application enable $pool rgw"
done > commands
timeout 60 ceph < commands >> log/setup.log 2>&1
timeout 60 radosgw-admin -n client.rgw user create --uid=t --display-name=t --access-key=ak --secret-key=sksksksk \
    >> log/setup.log 2>&1
timeout 60 radosgw -n client.rgw >> log/setup.log 2>&1
