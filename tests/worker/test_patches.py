"""Each test fails when upstream has mended what is patched: then the patch can go."""

import inspect

from nemo.lightning.megatron_parallel import MegatronParallel
from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter


def test_nemo_still_builds_ddp_on_a_stream_that_waits_for_nothing():
    source = inspect.getsource(MegatronParallel.init_model_parallel)
    assert "with torch.cuda.stream(torch.cuda.Stream()):" in source
    assert "synchronize" not in source
    assert "wait_stream" not in source


def test_nemo_still_reads_timers_on_the_printing_rank_only():
    assert "self.log_megatron_timers(timers)" in inspect.getsource(ProgressPrinter)
