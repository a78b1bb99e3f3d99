# shellcheck shell=bash disable=SC2154,SC2034
# How a job whose script is NeMo-Run's waits for its task, which runs in the background: only then
# does bash handle a signal at once. The lines before this define the variables stop (the file that
# asks the worker to stop), reason (where a failing one leaves its reason), cancelled and retries.

work=$!
trap 'interrupted=yes; : >"$stop"' USR1 TERM
[ -z "${warned:-}" ] || : >"$stop"
interrupted=yes
while [ -n "$interrupted" ]; do
    interrupted=
    wait "$work"
    code=$?
done
# NeMo-Run requeues the job after every failure. This prevents it if the worker left a reason, the
# run is being cancelled, or scancel or the time limit has ended the job, and limits the number of
# restarts without a reason.
again() {
    [ ! -s "$reason" ] && [ ! -e "$cancelled" ] || return
    [ -e "$stop" ] || [ "${SLURM_RESTART_COUNT:-0}" -lt "$retries" ] || return
    said=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    # Some sites print a greeting as well.
    [ "$(grep -xE '[A-Z_]+' <<<"$said" | tail -n 1)" = RUNNING ]
}
[ "$code" = 0 ] || again || TORCHX_MAX_RETRIES=0
(exit "$code")
