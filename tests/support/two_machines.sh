#!/bin/bash
# Runs a command on the first of two machines: two_machines.sh NOTES COMMAND...
# To be started in user, process, network and mount namespaces of its own, which are the first machine. The second has
# further ones: its own network address, processes and Ray directory; all other files are shared, as homes at a site are.
# NOTES/second is its first process, for nsenter. What runs there ends with the command.
set -euo pipefail
notes=$1
shift

ip link set lo up
ip link add first type veth peer name second
ip address add 10.9.0.1/24 dev first
ip link set first up
ip route add default via 10.9.0.2

mkdir -p "/tmp/drs-ray-$SLURM_JOB_ID"
unshare --net --pid --mount --fork --mount-proc bash -c '
    mount -t tmpfs none "/tmp/drs-ray-$SLURM_JOB_ID"
    touch "$0/up"
    exec sleep infinity' "$notes" &
while [[ ! -e $notes/up ]]; do sleep 0.1; done
second=$(tr -d " " < "/proc/$!/task/$!/children")
ip link set second netns "$second"
nsenter --target "$second" --net bash -c '
    ip link set lo up
    ip address add 10.9.0.2/24 dev second
    ip link set second up
    ip route add default via 10.9.0.1'
echo "$second" > "$notes/second"
exec "$@"
