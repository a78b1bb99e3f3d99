# shellcheck shell=bash disable=SC2154
# The tasks of an array task, one after another; follows job.sh. The lines before that also define
# the variables first, stride, tasks and marker.

result=0
index=${SLURM_ARRAY_TASK_ID:-0} # 0 in a job of its own, where there are no arrays
echo "array task $index, restart ${SLURM_RESTART_COUNT:-0}, on ${SLURMD_NODENAME:-}"
for ((task = first + index; task < tasks; task += stride)); do
    # shellcheck disable=SC2059 # the marker is a format that takes the task's number
    [ ! -e "$run/$(printf "$marker" "$task")" ] || continue
    if grep -qs "\"job\": \"$job\".*\"why\": \"failed\"" "$run/stages/attempts/$stage.$task"; then
        echo "shard $task has failed in this job before; cosmos-hpc retry tries it again"
        result=1
        continue
    fi
    do_task "$task" || result=$?
    [ "$result" != 75 ] || break
done
exit "$result"
