#!/usr/bin/env bash
# Make this machine a node of a Ray cluster, without a launcher: `node.sh head` on one, `node.sh HEAD_ADDRESS` on the others; what follows
# is handed on to `ray start`: `node.sh head --proxy-server-url=http://127.0.0.1:8266` where `burnish inspect --behind-dashboard` serves.
# `node.sh stop` ends the node, and every run on it. The head makes a token, ~/.ray/auth_token; the others, and whoever starts a run, need a
# copy of it there.
set -euo pipefail

export RAY_AUTH_MODE=token
PORT="${BURNISH_RAY_PORT:-6379}"
case "${1:-}" in
  head) ray get-auth-token --generate >/dev/null; exec ray start --head --port="$PORT" --dashboard-host=127.0.0.1 --disable-usage-stats "${@:2}" ;;
  stop) exec ray stop ;;
  "" | -*) echo "usage: $0 head | HEAD_ADDRESS [OPTION …] | stop" >&2; exit 2 ;;
  *) exec ray start --address="$1:$PORT" --disable-usage-stats "${@:2}" ;;
esac
