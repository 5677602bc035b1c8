"""Configurations of LSM as its users have them, by keys and values; comments are ours.

Shorewall: "Shorewall and Multiple Internet Connections", the section on FOOLSM (shorewall.org/MultiISP.html), with the
variables of its generated part put in. Net-ISP-Balance: what its `lsm_config_text` writes by the settings of its tests
(github.com/lstein/Net-ISP-Balance, lib/Net/ISP/Balance.pm and t/01.config.t), and an alias with its own address.
NethServer: what nethserver-lsm writes, by its templates' values.
"""

SHOREWALL = """\
#
# Defaults for the connection entries
#
defaults {
  name=defaults
  checkip=127.0.0.1
  eventscript=/etc/foolsm/script
  max_packet_loss=20
  max_successive_pkts_lost=7
  min_packet_loss=5
  min_successive_pkts_rcvd=10
  interval_ms=2000
  timeout_ms=2000
  warn_email=you@yourdomain.com
  check_arp=0
  sourceip=
  ttl=0
}

include /etc/foolsm/shorewall.conf
"""

SHOREWALL_INCLUDED = """\
connection {
    name=Avvanta
    checkip=206.124.146.254
    device=eth0
    ttl=2
}

connection {
    name=Comcast
    checkip=71.231.152.1
    device=eth1
    ttl=1
}
"""

NET_ISP_BALANCE = """\
debug=8

defaults {
 name=defaults
 check_arp=0
 checkip=127.0.0.1
 eventscript=/etc/network/load_balance.pl
 interval_ms=1000
 long_down_eventscript=/etc/network/load_balance.pl
 long_down_time=120
 max_packet_loss=20
 max_successive_pkts_lost=7
 min_packet_loss=10
 min_successive_pkts_rcvd=5
 notifyscript=/etc/network/balance/lsm/default_script
 status=2
 timeout_ms=500
 ttl=0
 warn_email=root
}

connection {
 name=CABLE
 device=eth0:1
 sourceip=191.3.88.152
 checkip=191.3.88.1
}

connection {
 name=DSL
 device=ppp0
 checkip=112.211.154.198
}
"""

NETHSERVER = """\
defaults {
  name=defaults
  eventscript=
  notifyscript=
  max_packet_loss=9
  max_successive_pkts_lost=6
  min_packet_loss=8
  min_successive_pkts_rcvd=3
  interval_ms=5000
  timeout_ms=2000
  status=1
}

connection {
  name=red1-8.8.8.8
  checkip=8.8.8.8
  device=eth1
}

connection {
  name=red1-208.67.222.222
  checkip=208.67.222.222
  device=eth1
}

group {
  name=red1
  eventscript=/usr/libexec/nethserver/wan-event
  logic=0  status=1
  member-connection=red1-8.8.8.8
  member-connection=red1-208.67.222.222
}

# so that it starts without any provider
connection {
  name=fake
  checkip=127.0.0.1
  interval_ms=100000000000000
  max_successive_pkts_lost=-1
  min_packet_loss=-1
  max_packet_loss=0
}
"""
