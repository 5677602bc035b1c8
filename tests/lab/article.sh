#!/bin/bash
# The rebuild that lsmpy replaces: the steps of the article's config_router.sh for its sample router, in its order, in
# our own words. A test holds lsmpy's rebuilds against it. Argument: the directory of the state files.
#
# It differs from the article in that tables have their numbers (rt_tables is not a test's to edit), and in that it ends
# with an error where the article's goes on.
set -eu

states=$1
# name, interface, gateway, our address, mark, table
isps=("ISP1 eth2 1.1.1.2 1.1.1.1 1 250" "ISP2 eth3 2.2.2.2 2.2.2.1 2 249")

is_up() { # NAME; one without a state file is up
    [ ! -f "$states/$1_state" ] || [ "$(< "$states/$1_state")" = up ]
}

each_isp() { # FUNCTION
    local line
    for line in "${isps[@]}"; do
        # shellcheck disable=SC2086  # a list of words
        "$1" $line
    done
}

mangle() {
    iptables -t mangle "$@"
}

forget_chain() {
    mangle -X "MARK-$1" 2>/dev/null || true # at the first run there is none
}

translate() {
    is_up "$1" || return 0
    iptables -t nat -A POSTROUTING -o "$2" -j SNAT --to-source "$4"
}

make_chain() {
    is_up "$1" || return 0
    mangle -N "MARK-$1"
    mangle -A "MARK-$1" -j MARK --set-mark "$5"
    mangle -A "MARK-$1" -j CONNMARK --save-mark
}

choose() { # by turns among those that are up
    is_up "$1" || return 0
    local lan
    for lan in eth0 eth1; do
        mangle -A PREROUTING -i $lan -m conntrack --ctstate NEW \
            -m statistic --mode nth --every "$up" --packet "$turn" -j "MARK-$1"
    done
    turn=$((turn + 1))
}

route() {
    ip route flush table "$6" 2>/dev/null || true # the same
    is_up "$1" || return 0
    ip route add table "$6" default dev "$2" via "$3"
    ip route add table "$6" 1.1.1.0/24 dev eth2 src 1.1.1.1
    ip route add table "$6" 2.2.2.0/24 dev eth3 src 2.2.2.1
    ip route add table "$6" 192.168.1.0/24 dev eth0 src 192.168.1.254
    ip route add table "$6" 192.168.2.0/24 dev eth1 src 192.168.2.254
}

lead() {
    ip rule del from all fwmark "$5" 2>/dev/null || true # the same
    is_up "$1" || return 0
    ip rule add fwmark "$5" table "$6"
}

up=0
count() { ! is_up "$1" || up=$((up + 1)); }
each_isp count
turn=0

for table in filter nat mangle; do
    iptables -t $table -F
done
each_isp forget_chain
each_isp translate
each_isp make_chain
mangle -A PREROUTING -i eth0 -s 192.168.1.0/24 -d 192.168.2.0/24 -j ACCEPT
mangle -A PREROUTING -i eth1 -s 192.168.2.0/24 -d 192.168.1.0/24 -j ACCEPT
for lan in eth0 eth1; do
    mangle -A PREROUTING -i $lan -m conntrack --ctstate ESTABLISHED,RELATED -j CONNMARK --restore-mark
done
each_isp choose
each_isp route
each_isp lead
ip route flush cache
