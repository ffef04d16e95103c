#!/usr/bin/env bash
# A Ray cluster of N nodes on this machine, to try things on: cluster/local.sh 3
#
# Node 0 is the head, without a core for trials; each of the others tells Ray that it has CPUS cores (1). Each has an
# address of its own on loopback (127.0.0.2, .3, …; Linux has them all). Token authentication is on.
# It stays in the foreground; Ctrl-C, or `cluster/local.sh stop` elsewhere, ends what it has started and nothing else.
# To see a node die: kill -9 the process that its line names. PORT=6400 starts another cluster beside it.
set -euo pipefail

port=${PORT:-6380}                        # the head's; the next two are the dashboard's and Ray Client's
home=/tmp/pharos-cluster-$(id -u)-$port   # short: the path of a socket has 107 characters at most
dashboard=http://127.0.0.1:$((port + 1))  # jobs go there, too

is_running() { [[ -f $home/pid ]] && kill -0 "$(<"$home/pid")" 2>/dev/null; }

case ${1:-} in
  stop)
    is_running || { echo "no cluster of this script runs with PORT=$port" >&2; exit 1; }
    kill -TERM "$(<"$home/pid")"
    while [[ -d $home ]]; do sleep 0.2; done
    exit 0
    ;;
  [2-9] | [1-9][0-9]) ;;
  *)
    echo "usage: $0 N (2 to 99 nodes, the head among them), or $0 stop" >&2
    exit 2
    ;;
esac
command -v ray >/dev/null || { echo "there is no ray: source .venv/bin/activate" >&2; exit 1; }
if is_running; then
  echo "one runs already with PORT=$port: $0 stop ends it, another PORT= starts one beside it" >&2
  exit 1
fi
rm -rf "$home" # of one that was killed
mkdir -m 700 "$home"
echo $$ >"$home/pid"

# A job that is stopped gets so many seconds to save (Ray's own default is 3).
export RAY_AUTH_MODE=token RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-300} RAY_USAGE_STATS_ENABLED=0
umask 077 # Ray writes ~/.ray/auth_token with it
ray get-auth-token --generate >/dev/null 2>&1

nodes=()
finish() {
  trap '' INT TERM
  for node in "${nodes[@]}"; do
    kill -TERM "$node" 2>/dev/null || true # it lets go of its node's processes, and has 30 s for it
  done
  wait
  rm -rf "$home"
}
trap finish EXIT
trap 'exit 0' INT TERM

start() { # NUMBER OPTION…: a node, with a folder and a session of its own; it ends when this script does, however that ends
  local number=$1 log=$home/node-$1.log
  shift
  setsid setpriv --pdeathsig TERM ray start "$@" --block --node-ip-address="127.0.0.$((number + 2))" \
    --dashboard-agent-listen-port=$((port + 3)) --object-store-memory=100000000 --num-gpus=0 --disable-usage-stats \
    --temp-dir="$home/$number" >"$log" 2>&1 &
  nodes+=($!)
  until grep -q 'Ray runtime started' "$log"; do
    kill -0 "${nodes[-1]}" 2>/dev/null || { tail -n 5 "$log" >&2; exit 1; }
    sleep 0.2
  done
  echo "node $number: 127.0.0.$((number + 2)), process ${nodes[-1]}"
}

start 0 --head --port="$port" --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) --num-cpus=0
for ((number = 1; number < $1; number++)); do
  start "$number" --address="127.0.0.2:$port" --num-cpus="${CPUS:-1}"
done
cat <<END
dashboard: $dashboard

export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=$dashboard
ray job submit --working-dir . -- python platform/sweep.py --family tipsy storage.url=$PWD/sweeps

or, with this shell as the driver:
RAY_AUTH_MODE=token RAY_ADDRESS=127.0.0.2:$port python platform/sweep.py --family tipsy

Ctrl-C, or $0 stop, ends it
END
wait
