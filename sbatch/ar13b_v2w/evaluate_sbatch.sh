#!/bin/bash
# Stage evaluate of run ar13b_v2w, written by cosmos-hpc.
#SBATCH --job-name=evaluate.ar13b_v2w.0123456789ab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --chdir=/shared/runs/ar13b_v2w
#SBATCH --output=/shared/runs/ar13b_v2w/logs/evaluate/%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --signal=B:USR1@300
#SBATCH --export=HOME,USER,LOGNAME,SHELL,PATH,LANG,HF_HOME,HF_HUB_CACHE,HF_HUB_OFFLINE,HF_TOKEN,WANDB_API_KEY,WANDB_MODE
#SBATCH --partition=gpu
#SBATCH --time=02:00:00
#SBATCH --account=robotics
#SBATCH --gres=gpu:h100:1

run=/shared/runs/ar13b_v2w
stage=evaluate
job="${SLURM_JOB_ID}"
log="logs/evaluate/${SLURM_JOB_ID}.log"
requeues=20
retries=2

# srun passes on what is set here, not only what sbatch was given.
unset SLURM_EXPORT_ENV
unset PYTHONPATH
export TRITON_CACHE_DIR="/tmp/triton-${USER:-}" MPLCONFIGDIR="/tmp/matplotlib-${USER:-}"

work() {
    # A container left behind by a lost step has the name of the next one.
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] ||
        srun --nodes=1 --ntasks-per-node=1 --input=none sh \
            /shared/runs/ar13b_v2w/code/0123456789ab/cosmos_hpc/backends/slurm/leftovers.sh
    srun --nodes=1 --ntasks-per-node=1 --cpus-per-task=12 --cpu-bind=none \
        --kill-on-bad-exit=1 --unbuffered --input=none \
        --container-image=/shared/images/cosmos-hpc.sqsh \
        --container-mounts=/dev/null:/cosmos-hpc-container,/shared/data:/shared/data,/shared/hf:/shared/hf,/shared/runs/ar13b_v2w:/shared/runs/ar13b_v2w \
        --container-workdir=/shared/runs/ar13b_v2w --no-container-mount-home \
        --container-writable \
        --container-env=HF_HOME,HF_HUB_CACHE,HF_HUB_OFFLINE,HF_TOKEN,WANDB_API_KEY,WANDB_MODE,COSMOS_HPC_STOP \
        sh /shared/runs/ar13b_v2w/code/0123456789ab/cosmos_hpc/backends/slurm/inside.sh \
        /cosmos-hpc-container python3 /shared/runs/ar13b_v2w/code/0123456789ab/run_task.py \
        /shared/runs/ar13b_v2w/stages/evaluate.json "$1"
}

# One line when work on a task begins and one when it ends: status and logs read them.
note() {
    printf '{"%s": %s, "job": "%s", "restart": %s, "node": "%s", "log": "%s", "why": "%s"}\n' \
        "$1" "$(date +%s)" "$job" "${SLURM_RESTART_COUNT:-0}" "${3:-${SLURMD_NODENAME:-}}" "$log" \
        "$2" >>"$attempts"
}

# Slurm warns before the time limit (USR1) and some preemptions (TERM). The worker finds the file,
# stops at the next safe point, and this job requeues itself. Slurm warns once: after a warning no
# further task may begin, even if the current one was still finished.
warned=
trap 'interrupted=yes; warned=yes; : >"${COSMOS_HPC_STOP:-/dev/null}"' USR1 TERM

give_up() {
    note end "$1"
    printf '%s\n' "$2" >"$reason.tmp" && mv "$reason.tmp" "$reason"
    return 1
}

# The state of this job in Slurm, which may be too busy to answer at once; some sites print a
# greeting as well.
state_in_queue() {
    local said
    for _ in 1 2 3 4; do
        said=$(squeue --noheader --jobs="$job" --format=%T) &&
            grep -xE '[A-Z_]+' <<<"$said" | tail -n 1 && return
        sleep 5
    done
    echo UNKNOWN
}

# Runs a command that is not interrupted when the job ends, which begins with TERM to all processes.
to_the_end() (
    trap '' TERM
    exec "$@"
)

# Requeues the job. Arguments: how the task ended, why in words, and the node at fault, if any.
requeue() {
    case "$(state_in_queue)" in
        COMPLETING | CANCELLED) # by scancel: must not run again
            note end cancelled
            return 75
            ;;
        PENDING) # Slurm has requeued it already
            note end "$1" "${3:-}"
            return 75
            ;;
        UNKNOWN) # perhaps cancelled
            give_up "$1" "$2, and Slurm did not say whether it is to be queued again"
            return
            ;;
    esac
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$requeues" ]; then
        give_up "$1" "$2, and requeues=$requeues times it was started again already"
        return
    fi
    local avoided=
    [ -z "${3:-}" ] || avoided=$(avoidable "$3")
    note end "$1" "${3:-}"
    echo "$2; queueing the job again"
    for _ in 1 2 3 4 5 6; do # Slurm may be busy
        if to_the_end scontrol requeue "$job"; then
            [ -z "$avoided" ] || keep_off "$avoided"
            sleep 60 # Slurm ends this script when it takes the job back
            break
        fi
        sleep 10
    done
    return 75
}

# The nodes that the job avoids already, and one more; nothing if no other node could take it.
avoidable() {
    local all
    all=$(scontrol show --oneliner job "$job" | sed -nE 's/.* ExcNodeList=([^ (]+) .*/\1/p')
    all=${all:+$all,}$1
    if sbatch --test-only --exclude="$all" "$0" >/dev/null 2>&1; then
        echo "$all"
    else
        echo "Slurm knows no other node than $1 that could take this job now" >&2
    fi
}

# Slurm changes the nodes of waiting jobs only, so this comes after the requeue.
keep_off() {
    if to_the_end scontrol update JobId="$job" ExcNodeList="$1"; then
        echo "the job is kept off $1"
    else
        echo "this site does not let the job be kept off $1: it may start there again"
    fi
}

log_size() {
    [ ! -e "$run/$log" ] || wc -c <"$run/$log"
}

since_begun() {
    tail -c "+$((${size:-0} + 1))" "$run/$log" 2>/dev/null
}

# Why a worker did not start, from what Slurm, the container or Python have written since then.
cause() {
    since_begun |
        grep -iE 'error|not found|no such|cannot|denied|unrecognized' |
        grep -vE 'Exited with exit code|Terminating StepId|STEP .* CANCELLED' |
        tail -n 3 | cut -c 1-300 | paste -sd ';' | sed 's/;/; /g'
}

# Where it did not start: the node that srun names first; the others ended because of it.
node_at_fault() {
    local named
    named=$(since_begun | sed -nE 's/.*error: ([^ ]+): tasks? [0-9,-]+: Exited with .*/\1/p
        s/.*[Ll]aunch for [^ ]+ failed on node ([^ :]+):.*/\1/p' | head -n 1)
    echo "${named:-${SLURMD_NODENAME:-}}"
}

# The worker ended without a reason. If it did not start, the log says why; a worker that was
# killed while starting (137) or lost with its node (0) is not counted as such.
try_again() {
    local ended=killed said="the worker was killed without a reason" why node=
    local tries="ended $((retries + 1)) times without a reason, perhaps out of memory"
    if [ ! -e "$COSMOS_HPC_STOP.begun" ] && [ "$code" != 137 ] && [ "$code" != 0 ]; then
        why=$(cause)
        node=$(node_at_fault)
        ended=unstarted said="the worker did not start: ${why:-the log does not say why}"
        tries="did not start, attempt $((retries + 1)) of $((retries + 1)), on "
        tries+="$(nodes_before)${node:-its node}: ${why:-the log does not say why}"
    fi
    if [ "$(failures | wc -l)" -ge "$retries" ]; then
        give_up failed "$tries"
        return
    fi
    # An image that is being replaced or a mount that is away may be back soon.
    [ "$ended" = killed ] || sleep 30
    requeue "$ended" "$said" "$node"
}

# Notes of workers of this job that ended like this at this task.
failures() {
    grep -E "\"job\": \"$job\".*\"why\": \"(killed|unstarted)\"" "$attempts"
}

# Other nodes that it did not start on, each followed by a comma.
nodes_before() {
    failures | sed -nE 's/.*"node": "([^"]+)".*"unstarted".*/\1/p' | grep -vxF "$node" | uniq |
        sed 's/$/, /' | tr -d '\n'
}

do_task() {
    attempts=$run/stages/attempts/$stage.$1
    reason=$run/stages/errors/$stage.$1.txt
    export COSMOS_HPC_STOP=$run/stages/stops/$stage.$1
    rm -f "$reason" "$COSMOS_HPC_STOP" "$COSMOS_HPC_STOP".{begun,done,stopped}
    note start ""
    if [ -n "$warned" ]; then
        requeue stopped "the job was asked to stop"
        return
    fi
    size=$(log_size)
    work "$1" &
    interrupted=yes
    while [ "$interrupted" = yes ]; do
        interrupted=no
        wait $!
        code=$?
    done
    # srun also returns 0 when it has lost its node: the worker itself must have noted its success.
    if [ "$code" = 0 ] && [ -e "$COSMOS_HPC_STOP.done" ]; then
        note end "done"
    elif [ -s "$reason" ]; then
        note end failed
        return 1
    elif [ -e "$run/stages/stop" ]; then
        note end cancelled
        return 75
    elif [ -n "$warned" ] || [ -e "$COSMOS_HPC_STOP.stopped" ]; then
        requeue stopped "the job was asked to stop"
    else
        try_again
    fi
}

do_task 0
