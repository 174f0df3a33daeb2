#!/bin/sh
# RabbitMQ for the tests (20 seconds), where there is apt and we are root. Elsewhere its tests are skipped and say so.
# Nothing is started: the tests start a server of their own.
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "RabbitMQ is not installed, and installing it needs root and apt-get: its tests will be skipped."
    exit 0
fi
echo "Installing RabbitMQ for the tests ..."
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
log=$(mktemp)
if [ ! -e /usr/sbin/policy-rc.d ]; then # without it the package would start its server at once
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d "$log"' EXIT
fi
{ apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends rabbitmq-server; } >"$log" 2>&1 ||
    { tail -3 "$log"; echo "RabbitMQ could not be installed: its tests will be skipped."; }
exit 0
