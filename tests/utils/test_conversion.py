import subprocess
import sys

#: New types, each used first by several threads at once, between any two instructions of Python.
MANY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from msgspec import defstruct
from cosmos_hpc.utils.conversion import convert

sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as pool:
    for _ in range(100):
        part = defstruct("Part", [(f"value{n}", int | None) for n in range(20)])
        kind = defstruct("Whole", [(f"part{n}", part | None) for n in range(20)])
        data = {name: {f"value{n}": n for n in range(20)} for name in kind.__struct_fields__}
        wholes = list(pool.map(lambda _: convert(data, kind), range(8)))
        assert wholes == [wholes[0]] * 8 and wholes[0].part3.value4 == 4
"""


def test_threads_that_are_the_first_to_use_a_type():
    done = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
