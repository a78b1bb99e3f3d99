"""Each test fails when upstream has mended what is patched: then the patch can go."""

import inspect
import re

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing import exchange_utils, mapping, validation
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from nemo.collections.llm.peft import lora
from nemo.collections.llm.peft import utils as peft_utils
from nemo.lightning.megatron_parallel import MegatronParallel
from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter

from cosmos_hpc.worker.training import patches


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


def test_megatron_still_multiplies_shapes_as_numpy_1_does(monkeypatch):
    """In these modules, and in no other that writes checkpoints."""
    modules = (exchange_utils, mapping, validation)
    for module in modules:
        assert re.search(r"\bnp\.product\(", inspect.getsource(module))
        monkeypatch.setattr(module, "np", np)
    monkeypatch.delattr(np, "product", raising=False)
    tensor = mapping.ShardedTensor.from_rank_offsets("x", torch.zeros(2, 3))
    with pytest.raises(AttributeError, match="product"):
        exchange_utils._shard_size(tensor)
    patches.multiply_shapes()
    assert exchange_utils._shard_size(tensor) == 24
    assert all(module.np.product((2, 3)) == 6 and module.np.prod is np.prod for module in modules)


def test_nemo_still_takes_stand_ins_for_transformer_engine():
    assert "m.__class__ == te.Linear" in inspect.getsource(lora.LoRA.transform)
    source = inspect.getsource(peft_utils)
    assert 'safe_import_from(\n    "megatron.core.extensions.transformer_engine"' in source


def test_megatron_still_looks_for_parameters_behind_the_space_between_buckets():
    gathers = inspect.getsource(DistributedOptimizer.get_parameter_state_dp_zero)
    assert "offset_in_world_tensors += gbuf_world_numel_unpadded" in gathers
    reads = inspect.getsource(DistributedOptimizer.sharded_param_state_fully_reshardable)
    assert "world_tensors[state_key][param_world_start:param_world_end]" in reads
