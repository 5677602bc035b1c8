"""The rebuild as a shell script, for `--dry-run`: what a person can read, and run."""

from __future__ import annotations

from collections.abc import Iterable

from lsmpy import freeing, netfilter, routing
from lsmpy.changes import add_text
from lsmpy.freeing import Commands
from lsmpy.marking import DOWN, LEFT
from lsmpy.netfilter import BUILTIN, MARK, PREFIX, Table
from lsmpy.plan import Plan, Side

_RAW = "raw"
_TOOLS = {4: "iptables", 6: "ip6tables"}
_HEADER = r"""#!/bin/sh
# The router as lsmpy-reconfig would build it now: @SUMMARY@
# Run it as root. @HOW@, keeps the policies of built-in chains, and asks nobody.
set -eu

# Adds and replaces; a rule that is there already, or an interface that is not, stops nothing else.
add() { ip "$1" -force -batch - 2>&1 | grep -v -e 'File exists' -e 'Command failed' >&2 || true; }

@LOAD@
# Removes the rules that $2 says are ours, and are not in the list on standard input.
only_rules() {
    wanted=$(cat)
    ip "$1" -N rule show | sed 's/^\([0-9]*\):[[:space:]]*/pref \1 /; s/ \[detached\]//; s/ *$//' |
        { grep -E "$2" || true; } |
        while read -r rule; do
            printf '%s\n' "$wanted" | grep -qxF -- "$rule" || echo "rule del $rule"
        done | ip "$1" -force -batch - || true
}

# Removes from the routing table $2 what has another target or metric than those on standard input, $3 of what is there.
only_routes() {
    wanted=$(cat)
    # shellcheck disable=SC2086  # no word or two
    ip "$1" -N route show table "$2" ${3:-} 2>/dev/null |
        sed -E 's/ (linkdown|dead|pref [a-z]+|error -?[0-9]+)//g; s/ *$//' |
        while read -r route; do
            target=${route#[0-9] }
            case $route in
            *' metric '*) metric=${route##* metric } ;;
            *) metric=0 ;;
            esac
            printf '%s\n' "$wanted" | grep -qxF -- "${target%% *} ${metric%% *}" ||
                echo "route del $route table $2${3:+ $3}"
        done | sed -E 's/^(route del )2 /\1local /; s/^(route del )6 /\1blackhole /; s/^(route del )7 /\1unreachable /
            s/^(route del )8 /\1prohibit /; s/^(route del )9 /\1throw /' | ip "$1" -force -batch - || true
}

"""
_FREE = r"""
# Frees the connections of the ISP $3, by the commands on standard input, if in the former table $1 it was in service:
# neither its list $2 nor the one of those that are down had it.
free() {
    commands=$(cat)
    printf '%s\n' "$1" | grep -q "^:$2 " || return 0
    printf '%s\n' "$1" | grep -qxE -e "-A ($2|@DOWN@) -j @MARK@$3" && return 0
    command -v conntrack >/dev/null || { echo "conntrack is not installed: connections stay on $3" >&2; return 0; }
    printf '%s\n' "$commands" | sh >/dev/null 2>&1 || true
}

# Frees the connections of ISPs that had another mark in the former table $2, or are here no more; the marks of those
# that are come on standard input.
remarked() {
    wanted=$(cat)
    printf '%s\n' "$2" | grep -E '^-A @MARK@.* --set-xmark ' | while read -r rule; do
        printf '%s\n' "$wanted" | grep -qxF -- "$rule" ||
            conntrack -D -f "ipv$1" --mark "${rule##* }" >/dev/null 2>&1 || true
    done
}
""".replace("@DOWN@", DOWN).replace("@MARK@", MARK)


def render(plan: Plan, infix: str = "", commands: Commands | None = None, beside_others: bool = False) -> str:
    """The whole script; it needs nothing but sh, sed, grep, ip and iptables, and conntrack while an ISP is down.

    Args:
        plan: what it shall build.
        infix: what the programs of the chosen iptables have in their names, `-legacy` or `-nft`.
        commands: what frees each ISP's connections.
        beside_others: whether others' chains, rules and routes are to be left alone.
    """
    header = _HEADER.replace("@SUMMARY@", plan.summary or "no ISP")
    header = header.replace("@HOW@", _HOW[beside_others]).replace("@LOAD@", _LOAD[beside_others])
    freed = [(side, list(_free(side, commands))) for side in plan.sides if commands]
    parts = [_FREE] if freed else []
    parts += [f"was_{side.family}=$({_TOOLS[side.family]}{infix}-save -t mangle)\n" for side, _ in freed]
    parts += [_input(f"add -{side.family}", add_text(side.routes, side.rules)) for side in plan.sides]
    parts += [_table(side, table, infix) for side in plan.sides for table in side.tables]
    parts += [part for side in plan.sides for part in _tracked_again(side, infix)]
    parts += [f"echo {value} >/proc/sys/{key} || true\n" for key, value in plan.sysctls]
    parts += [part for side in plan.sides for part in _stale(side, beside_others)]
    parts += [part for _, free in freed for part in free]
    return header + "\n".join(parts)


_HOW = {
    False: "It replaces the tables below whole",
    True: "It fills our own chains of the tables below and leaves others' alone",
}
_LOAD = {
    False: r"""# Loads one table in one commit; a policy that reads KEEP stays as it is.
load() {
    policies=$("$1-save" -t "$2" | sed -n 's/^:\([A-Z]*\) \([A-Z][A-Z]*\) .*/s@^:\1 KEEP @:\1 \2 @/p')
    sed -e "$policies" -e 's/^\(:[A-Z]*\) KEEP /\1 ACCEPT /' | "$1-restore" -w
}
""",
    True: r"""# Fills our chains of a table, in one commit. A missing jump comes first in its chain, but in
# nat last, where others' rules are exceptions from ours. What was ours goes.
load() {
    wanted=$(cat)
    live=$("$1-save" -t "$2")
    jumps='^-A (PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) (.* )?-[gj] @PREFIX@[^ "]*$'
    case $2 in nat) add=-A ;; *) add=-I ;; esac
    named() { printf '%s\n' "$wanted" | grep -qxF -- "$1"; }
    {
        printf '%s\n' "$wanted" | grep -vE -e "$jumps" -e '^:[A-Z]* KEEP' -e '^COMMIT'
        printf '%s\n' "$live" | sed -nE 's/^:(@PREFIX@[^ ]*) .*/\1/p' | {
            gone='' pattern='' seen=''
            while read -r chain; do
                named ":$chain - [0:0]" || { gone="$gone $chain" pattern="$pattern|$chain"; }
            done
            printf '%s\n' "$live" | grep -E -e "$jumps" -e "^-A .* -[gj] (${pattern#|})\$" | while read -r rule; do
                from=${rule#-A } && from=${from%% *}
                named ":$from - [0:0]" && continue
                case " $gone " in *" $from "*) continue ;; esac
                case "$seen" in *"|$rule|"*) ;; *) named "$rule" && seen="$seen|$rule|" && continue ;; esac
                echo "-D${rule#-A}"
            done
            for chain in $gone; do echo "-F $chain"; done
            for chain in $gone; do echo "-X $chain"; done
        }
        printf '%s\n' "$wanted" | grep -E "$jumps" | while read -r rule; do
            printf '%s\n' "$live" | grep -qxF -- "$rule" || echo "$add${rule#-A}"
        done
        echo COMMIT
    } | "$1-restore" -w --noflush
}
""".replace("@PREFIX@", PREFIX),
}


def _table(side: Side, table: Table, infix: str) -> str:
    text = netfilter.render([table])
    for chain in table.chains:
        if chain.name in BUILTIN[table.name] and chain.policy is None:
            text = text.replace(f":{chain.name} ACCEPT [0:0]", f":{chain.name} KEEP [0:0]", 1)
    return _input(f"load {_TOOLS[side.family]}{infix} {table.name}", text)


def _tracked_again(side: Side, infix: str) -> Iterable[str]:
    """What takes ours out of raw, unless packets are translated one by one: before, they may have been."""
    if side.family == 6 and not any(table.name == _RAW for table in side.tables):
        raw = f"{_TOOLS[side.family]}{infix}-save | sed -n '/^[*]{_RAW}/,/^COMMIT/p'"  # to ask for it would make it
        yield f"! {raw} | grep -q '^:{PREFIX}' || {_table(side, netfilter.table(_RAW), infix)}"


def _free(side: Side, commands: Commands) -> Iterable[str]:
    """What frees the connections of the ISPs that are listed, if they were not before, or that had other marks."""
    mangle = side.table("mangle")
    marks = (rule for rule in mangle.rules if rule.startswith(f"-A {MARK}") and " --set-xmark " in rule)
    yield _input(f'remarked {side.family} "$was_{side.family}"', _lines(marks))
    down, left = (freeing.listed(mangle, name) for name in (DOWN, LEFT))
    for name, isps in ((DOWN, down), (LEFT, left - down)):
        for isp in sorted(isps):
            if known := commands.get((side.family, isp), ()):
                yield _input(f'free "$was_{side.family}" {name} {isp}', _lines(known))


def _stale(side: Side, beside_others: bool) -> Iterable[str]:
    # Who goes by a rule may have no route at the moment.
    looked_up = {rule.table for rule in side.rules} - {routing.MAIN, routing.REFUSED}
    numbers = sorted(looked_up | {route.table for route in side.routes})
    protocol = f" proto {routing.PROTOCOL}"
    # Others' rules are ours to remove if they lead to our tables and say nothing that lsmpy does not know.
    tables = "|".join(map(str, numbers))
    plain = f"pref [0-9]+ (not )?from [^ ]+( (to|fwmark|iif|oif) [^ ]+)* lookup ({tables})"
    which = "" if beside_others else f"|^{plain}( suppress_prefixlength [0-9]+)?( proto [^ ]+)?$"
    yield _input(f"only_rules -{side.family} '{protocol}${which}'", _lines(_printed_rules(side)))
    for number in numbers:
        keys = sorted({f"{route.target} {route.metric}" for route in side.routes if route.table == number})
        which = f"'{protocol.strip()}'" if beside_others else ""
        yield _input(f"only_routes -{side.family} {number} {which}".rstrip(), _lines(keys))


def _printed_rules(side: Side) -> Iterable[str]:
    """Our rules in the words in which `ip -N rule show` prints them."""
    for rule in side.rules:
        selector = rule.selector if rule.selector.startswith("from") else f"from all {rule.selector}".strip()
        suppress = " suppress_prefixlength 0" if rule.suppress_default else ""
        action = routing.PROHIBIT if rule.table == routing.REFUSED else f"lookup {rule.table}"
        yield f"pref {rule.priority} {selector} {action}{suppress} proto {rule.protocol}"


def _lines(items: Iterable[str]) -> str:
    return "".join(f"{item}\n" for item in items)


def _input(command: str, text: str) -> str:
    return f"{command} <<'END_OF_INPUT'\n{text}END_OF_INPUT\n"
