#!/bin/sh
# In the place of the article's config_router.sh: rebuilds the router once from the state files. Arguments go to
# lsmpy-reconfig. A running `lsmpy-reconfig --watch` is no harm: the two lock each other out, and the newest state wins.
set -eu
if command -v lsmpy-reconfig >/dev/null; then
    exec lsmpy-reconfig --replace "$@"
fi
# Called by LSM or cron, whose PATH may lack it: beside this file, or in the checkout that this file belongs to.
here=$(dirname "$(readlink -f "$0")")
for program in "$here/lsmpy-reconfig" "$here/../.venv/bin/lsmpy-reconfig"; do
    if [ -x "$program" ]; then
        exec "$program" --replace "$@"
    fi
done
if python3 -c 'import lsmpy' 2>/dev/null; then
    exec python3 -m lsmpy.reconfig --replace "$@"
fi
echo "config_router.sh: error: there is no lsmpy-reconfig in $PATH or $here. Nothing was changed. Install lsmpy" >&2
exit 1
