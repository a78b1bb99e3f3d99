#!/bin/sh
# Removes the containers that a job has on a node, before it starts one there.
#
# A step that Slurm has lost, such as one whose slurmstepd was killed, leaves its container behind.
# pyxis names containers by job and step, which are counted again when the job is queued again, and
# starts none where there is one of that name.

command -v enroot >/dev/null || exit 0
enroot list | grep "^pyxis_${SLURM_JOB_ID}[.]" | while read -r name; do
    enroot remove --force "$name"
done
