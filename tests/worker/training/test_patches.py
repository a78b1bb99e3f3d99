"""Each test fails when upstream has mended what is patched: then the patch can go."""

import inspect

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from nemo.lightning.megatron_parallel import MegatronParallel
from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter


def test_nemo_still_builds_ddp_on_a_stream_that_waits_for_nothing():
    source = inspect.getsource(MegatronParallel.init_model_parallel)
    assert "with torch.cuda.stream(torch.cuda.Stream()):" in source
    assert "synchronize" not in source
    assert "wait_stream" not in source


def test_megatron_still_wants_a_step_of_an_adam_that_has_not_stepped():
    source = inspect.getsource(DistributedOptimizer.state_dict)
    assert 'set([s["step"].item() for s in inner_state_dict["state"].values()])' in source
    assert "assert len(steps) == 1" in source


def test_megatron_still_looks_for_steps_that_it_does_not_save():
    source = inspect.getsource(DistributedOptimizer._set_main_param_and_optimizer_states)
    assert "dst_tensors[key].copy_(tensors[key])" in source


def test_nemo_still_reads_timers_on_the_printing_rank_only():
    assert "self.log_megatron_timers(timers)" in inspect.getsource(ProgressPrinter)
