#!/usr/bin/env bash
# Tries sweep.sbatch on a Slurm of its own, on this machine, as root: two nodes (two slurmd), a sweep that ends, and one that
# its time limit stops in the midst, and that goes on by itself. About 6 minutes, 2 of them Slurm's own
# before it starts again what was queued again. `make slurm`.
set -euo pipefail
cd "$(dirname "$0")/../.."
for each in slurmctld slurmd munged sbatch; do
  command -v "$each" >/dev/null || { echo "there is no $each: apt-get install slurm-wlm munge" >&2; exit 1; }
done
[[ $(id -u) == 0 ]] || { echo "slurmd and munged of one's own need root" >&2; exit 1; }

home=$(mktemp -d /tmp/pharos-slurm.XXXX)
daemons=()
finish() {
  if [[ -f $home/slurm.conf && -n ${job:-} ]]; then
    scancel "$job" 2>/dev/null || true
    for _ in $(seq 60); do # until its steps are gone
      [[ $(squeue --noheader 2>/dev/null | wc -l) == 0 ]] && break
      sleep 1
    done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill -TERM "${daemons[i]}" 2>/dev/null || true; done
  sleep 5
  for each in "${daemons[@]}"; do kill -KILL "$each" 2>/dev/null || true; done
  wait
  [[ -n ${KEEP:-} ]] || rm -rf "$home"
}
trap finish EXIT
trap 'trap "" INT TERM; exit 1' INT TERM

mkdir "$home"/{munge,state,n1,n2}
chmod 755 "$home" "$home/munge"
dd if=/dev/urandom of="$home/munge.key" bs=128 count=1 2>/dev/null
chmod 400 "$home/munge.key"
munged --foreground --force --key-file="$home/munge.key" --socket="$home/munge/socket" --pid-file="$home/munge/pid" \
  --seed-file="$home/munge/seed" --log-file="$home/munge/log" >"$home/munged.log" 2>&1 &
daemons+=($!)

host=$(hostname -s)
cat >"$home/slurm.conf" <<END
ClusterName=pharos
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17811
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket
CredType=cred/munge
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
JobRequeue=1
SchedulerParameters=requeue_delay=1,bf_interval=1,sched_interval=2
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17812 CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17813 CPUs=1 State=UNKNOWN
PartitionName=try Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$home/slurm.conf
slurmctld -D -f "$SLURM_CONF" >"$home/slurmctld.log" 2>&1 &
daemons+=($!)
for node in n1 n2; do
  slurmd -D -N "$node" -f "$SLURM_CONF" >"$home/$node.log" 2>&1 &
  daemons+=($!)
done
for _ in $(seq 30); do
  [[ $(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l) == 2 ]] && break
  sleep 1
done
sinfo --Node

submit() { # ARGUMENT…: of sbatch
  job=$(sbatch --parsable --chdir="$PWD" "$@")
  log=$PWD/slurm-$job.out
}
await() { # SECONDS PATTERN: a line in the job's log
  for ((second = 0; second < $1; second++)); do
    grep -qE "$2" "$log" 2>/dev/null && return
    sleep 1
  done
  echo "job $job: no line like '$2' within $1 s" >&2
  cat "$log" >&2
  exit 1
}
tiny=(scale=tiny tracking=none scheduler=none storage.url="$home/sweeps")

date +%T
submit cluster/slurm/sweep.sbatch --family tipsy trials=4 "${tiny[@]}"
await 400 '^sweep .*: 4 complete'
echo "job $job: a sweep over two nodes ran to its end ($(date +%T))"

# The limit's herald that comes 120 s before the end is sent by hand, not waited for.
submit --time=15 cluster/slurm/sweep.sbatch --family tipsy trials=4 "${tiny[@]}" recipe.epochs=150
await 400 'trial 00000 starts'
sleep 4
scancel --batch --signal=USR1 "$job"
await 120 'trial 0000[01] interrupted'
await 300 'trial 0000[01] goes on'
await 400 '^sweep .*: 4 complete'
echo "job $job: stopped in the midst, queued again, resumed and ran to its end ($(date +%T))"
grep -E 'sweep |trial .*(starts|goes on|interrupted|complete)|^sweep' "$log" | cut -c1-100
rm -f "$PWD"/slurm-*.out
