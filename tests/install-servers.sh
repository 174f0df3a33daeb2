#!/bin/sh
# RabbitMQ and Chromium for the tests (a minute), where there is apt and we are root. Elsewhere their tests are skipped
# and say so. Nothing is started: the tests start a server and a browser of their own.
missing=""
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="rabbitmq-server"
command -v chromium >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, which needs root and apt-get: $missing. Their tests will be skipped."
    exit 0
fi
echo "Installing for the tests: $missing ..."
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
log=$(mktemp)
if [ ! -e /usr/sbin/policy-rc.d ]; then # without it the package would start its server at once
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d "$log"' EXIT
fi
apt-get update -qq >"$log" 2>&1
for package in $missing; do # Ubuntu's chromium, for instance, needs snap: the other one is installed all the same
    timeout 300 apt-get install -y -qq --no-install-recommends "$package" >"$log" 2>&1 ||
        { tail -3 "$log"; echo "$package could not be installed: its tests will be skipped."; }
done
exit 0
