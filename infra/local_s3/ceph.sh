#!/usr/bin/env bash
# A local S3 server: Ceph's RADOS Gateway with one monitor and one disk, on 127.0.0.1 alone.
#
#   ceph.sh start [--memory] DIR [PORT]   start it; everything that it writes is below DIR
#   ceph.sh stop DIR                      end it
#   ceph.sh run [--memory] DIR [PORT]     start it, and end it with standard input or a signal
#   ceph.sh user DIR NAME                 make one more user, with keys of its own in DIR/NAME.env
#
# A user's variables:  set -a; . DIR/credentials.env; set +a
#
# Objects lie in DIR and outlive a stop; with --memory they lie in memory and a stop forgets them. Keys are random, in
# files that their owner alone can read. A start where one runs already changes nothing. PORT is a free one by default.
set -euo pipefail

PROGRAMS=(radosgw radosgw-admin ceph-mon ceph-osd ceph ceph-authtool monmaptool)
DAEMONS=(mon osd gateway)  # in the order in which they start; they end in the other
BOOT_SECONDS=60
END_SECONDS=20  # then a daemon is killed

die() {
    echo "ceph.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '4,7s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

require_programs() {
    local program
    # Debian keeps daemons in /usr/sbin, which is not on every user's PATH.
    PATH=$PATH:/usr/sbin:/sbin
    for program in "${PROGRAMS[@]}"; do
        command -v "$program" >/dev/null || die "there is no $program on the PATH;" \
            "sudo apt-get update && sudo apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
    done
}

is_open() {
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# A free port, and none of those given: they are taken later.
free_port() {
    local port
    while :; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))  # below the ports that clients are given
        [[ " $* " == *" $port "* ]] || is_open "$port" || break
    done
    echo "$port"
}

# The process id of a daemon of this DIR, if it runs: a number in an old file may be another process by now.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
    [[ -n $pid ]] && grep -qaF -- "$dir/ceph.conf" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

all_run() {
    local daemon
    for daemon in "${DAEMONS[@]}"; do
        pid_of "$daemon" >/dev/null || return 1
    done
}

wait_for() {
    local what=$1 log=$2 end=$((SECONDS + BOOT_SECONDS))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= end)); then
            tail -n 5 "$log" >&2 || true
            die "$what after $BOOT_SECONDS s; the end of $log is above"
        fi
        sleep 0.1
    done
}

# Daemons must not keep the lock or the caller's input and output open.
quietly() {
    "$@" </dev/null >>"$dir/start.log" 2>&1 3<&- 9>&- || {
        tail -n 5 "$dir/start.log" >&2
        die "$1 failed; the end of $dir/start.log is above"
    }
}

write_configuration() {
    local public=$1 old=$2
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v2:127.0.0.1:$public,v1:127.0.0.1:$old]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = $dir/keyring
log_file = $dir/\$name.log
log_to_stderr = false
admin_socket =
crash_dir = $dir
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_crush_chooseleaf_type = 0

[mon]
mon_data = $dir/mon
pid_file = $dir/mon.pid
auth_allow_insecure_global_id_reclaim = false
mon_allow_pool_size_one = true
mon_data_avail_warn = 2
mon_data_avail_crit = 1
# One monitor has nobody to wait for; with the default of 1 s every pool takes that long.
paxos_propose_interval = 0.01
paxos_min_wait = 0.01

[osd]
osd_data = $dir/osd
pid_file = $dir/osd.pid
osd_objectstore = $objectstore
memstore_device_bytes = 16G

[client.gateway]
pid_file = $dir/gateway.pid
rgw_enable_apis = s3
rgw_thread_pool_size = 64
CONF
}

make_cluster() {
    local public old
    public=$(free_port "$port")
    old=$(free_port "$port" "$public")
    mkdir -p "$dir/mon" "$dir/osd"
    write_configuration "$public" "$old"
    quietly ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
    quietly ceph-authtool "$dir/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    quietly ceph-authtool "$dir/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
    quietly ceph-authtool "$dir/keyring" --gen-key -n client.gateway --cap mon 'allow rw' --cap osd 'allow rwx'
    quietly monmaptool --create --clobber --addv a "[v2:127.0.0.1:$public,v1:127.0.0.1:$old]" \
        --fsid "$(sed -n 's/^fsid = //p' "$dir/ceph.conf")" "$dir/monmap"
    quietly ceph-mon -c "$dir/ceph.conf" -i a --mkfs --monmap "$dir/monmap"
}

boot() {
    local made=$1 uuid
    quietly ceph-mon -c "$dir/ceph.conf" -i a
    wait_for "the monitor does not answer" "$dir/start.log" ceph -c "$dir/ceph.conf" --connect-timeout 5 mon stat
    if [[ $made == new ]]; then
        uuid=$(cat /proc/sys/kernel/random/uuid)
        quietly ceph -c "$dir/ceph.conf" osd new "$uuid"
        quietly ceph-osd -c "$dir/ceph.conf" -i 0 --mkfs --osd-uuid "$uuid"
    fi
    quietly ceph-osd -c "$dir/ceph.conf" -i 0
    # Without tcp_nodelay every answer with a body takes 40 ms.
    quietly radosgw -c "$dir/ceph.conf" -n client.gateway \
        --rgw-frontends="beast endpoint=127.0.0.1:$port tcp_nodelay=1"
    wait_for "the gateway does not answer" "$dir/client.gateway.log" is_open "$port"
}

# Make a user and write its keys; the gateway invents them, so that they are on no command line.
make_user() {
    local name=$1 file=$2 facts access secret
    facts=$(radosgw-admin -c "$dir/ceph.conf" user create --uid="$name" --display-name="$name" 2>>"$dir/start.log" 9>&-) \
        || die "user $name was not made: $(tail -n 1 "$dir/start.log")"
    access=$(sed -n 's/.*"access_key": "\(.*\)".*/\1/p' <<<"$facts")
    secret=$(sed -n 's/.*"secret_key": "\(.*\)".*/\1/p' <<<"$facts")
    secret=${secret//\\\//\/}
    [[ -n $access && -n $secret ]] || die "user $name has no keys; radosgw-admin answered in an unknown form"
    write_variables "$file" "$access" "$secret"
}

write_variables() {
    printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\nAWS_ENDPOINT_URL=http://127.0.0.1:%s\nAWS_DEFAULT_REGION=us-east-1\n' \
        "$2" "$3" "$port" >"$1"
}

start() {
    require_programs
    # What is forgotten later must have been made here.
    [[ -e $dir/ceph.lock || -z $(ls -A "$dir" 2>/dev/null) ]] \
        || die "$dir is neither empty nor a server's folder; name a new one"
    mkdir -p "$dir"
    chmod 700 "$dir"
    exec 9>"$dir/ceph.lock"
    flock -n 9 || die "another start or stop works on $dir at this moment"
    if all_run; then
        echo "runs already: $(sed -n 's/^AWS_ENDPOINT_URL=//p' "$dir/credentials.env"), $dir/credentials.env"
        return
    fi
    local kept=no
    if [[ -f $dir/credentials.env ]] && grep -q '^osd_objectstore = bluestore' "$dir/ceph.conf"; then
        kept=yes
        [[ $objectstore == bluestore ]] \
            || die "$dir holds objects on disk, and --memory would forget them; start it without --memory, or name a new folder"
    fi
    end_daemons  # what has outlived a crash
    [[ -z $port ]] && port=$(free_port)
    is_open "$port" && die "port $port of 127.0.0.1 is taken; name another, or none for a free one"
    trap 'end_daemons' EXIT
    local file
    if [[ $kept == yes ]]; then
        boot again
        for file in "$dir"/*.env; do
            sed -i "s|^AWS_ENDPOINT_URL=.*|AWS_ENDPOINT_URL=http://127.0.0.1:$port|" "$file"
        done
    else
        forget
        make_cluster
        boot new
        make_user owner "$dir/credentials.env"
    fi
    trap - EXIT
    exec 9>&-
    echo "ready: http://127.0.0.1:$port, $dir/credentials.env"
}

end_daemons() {
    local place daemon pid end
    for ((place = ${#DAEMONS[@]} - 1; place >= 0; place--)); do
        daemon=${DAEMONS[place]}
        pid=$(pid_of "$daemon") || continue
        kill "$pid" 2>/dev/null || true
        end=$((SECONDS + END_SECONDS))
        while pid_of "$daemon" >/dev/null; do
            ((SECONDS < end)) || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$dir/$daemon.pid"
    done
}

forget() {
    rm -rf "$dir"/{mon,osd,monmap,keyring,*.env}
}

stop() {
    [[ -f $dir/ceph.conf ]] || die "no server was started in $dir"
    exec 9>"$dir/ceph.lock"
    flock -w "$BOOT_SECONDS" 9 || die "another start or stop works on $dir at this moment"
    end_daemons
    if grep -q '^osd_objectstore = memstore' "$dir/ceph.conf"; then
        forget
    fi
    exec 9>&-
}

run() {
    local reader=
    exec 3<&0
    trap 'kill $reader 2>/dev/null || true; stop; exit 0' INT TERM HUP
    start
    cat <&3 >/dev/null &
    reader=$!
    wait "$reader" || true
    stop
}

user() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]*$ ]] || die "user $1: a name is of small letters, digits and dashes"
    require_programs
    pid_of gateway >/dev/null || die "no server runs in $dir; ceph.sh start $dir"
    [[ ! -e $dir/$1.env ]] || die "there is a user $1 already; its variables are in $dir/$1.env"
    port=$(sed -n 's/^AWS_ENDPOINT_URL=.*://p' "$dir/credentials.env")
    make_user "$1" "$dir/$1.env"
    echo "$dir/$1.env"
}

umask 077
objectstore=bluestore
[[ $# -ge 2 ]] || usage
verb=$1
shift
if [[ $1 == --memory ]]; then
    objectstore=memstore
    shift
fi
[[ $# -ge 1 ]] || usage
dir=$(realpath -m -- "$1")
port=
case $verb in
    start | run)
        port=${2:-}
        [[ $# -le 2 && $port =~ ^[0-9]*$ ]] || usage
        "$verb"
        ;;
    stop)
        [[ $# -eq 1 ]] || usage
        stop
        ;;
    user)
        [[ $# -eq 2 ]] || usage
        user "$2"
        ;;
    *) usage ;;
esac
