"""What of a log people read: all that is not a library's talk of itself."""

from cosmos_hpc.runs.log_filter import LogFilter

NOISE = """\
/x/torch/cuda/__init__.py:64: FutureWarning: The pynvml package is deprecated.
  import pynvml  # type: ignore[import]

*****************************************
Setting OMP_NUM_THREADS environment variable for each process to be 1 in default
*****************************************
[NeMo I 2026-11-26 19:36:08 utils:707] Number of buckets for gradient all-reduce: 1
    Params for bucket 1 (8340224 elements, 8340224 padded size):
    \toutput_layer.weight
GPU available: False, used: False
----------------------------------------
0 | module | DDP  | 8.3 M  | train
8.3 M     Trainable params
"""
WORK = """\
array task 0, restart 0, on n1
19:36:12 step 1/20, loss 11.062, 3.23 s/step, 1 min 01 s left
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    raise ValueError("x")
ValueError: x
Segmentation fault (core dumped)
slurmstepd: error: *** JOB 66 ON n1 CANCELLED ***
something that nobody has seen before
    and its second line
"""


def test_the_work_and_all_errors_are_left():
    first, *rest = WORK.splitlines(keepends=True)
    log = first + NOISE + NOISE.join(rest) + "no end of a line"
    for size in (1, 7, len(log)):
        read = LogFilter()
        pieces = [read(log[at : at + size]) for at in range(0, len(log), size)]
        # What is indented behind a library's line is taken for the rest of it.
        assert "".join([*pieces, read.end()]).splitlines() == [
            line for line in (WORK + "no end of a line").splitlines() if line[0] != " "
        ]
    read = LogFilter()
    assert read(WORK) == WORK and read.left_out == 0
    assert read(NOISE) == "" and read.left_out == NOISE.count("\n")
    raw = LogFilter(raw=True)
    assert raw(log) == log
