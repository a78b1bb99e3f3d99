"""Words that people know from other trainers, schedulers and papers, and the settings meant."""

from __future__ import annotations

from cosmos_hpc.utils.settings import Synonym

#: Settings in full, what differs from the usual meaning, and the words, in lower case.
_TABLE: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # The optimizer.
    (("train.learning_rate",), "", "lr base_lr max_lr peak_lr lr_rate"),
    (("train.min_learning_rate",), "", "min_lr lr_min eta_min final_lr"),
    (
        ("train.schedule",),
        "",
        "scheduler lr_scheduler lr_schedule lr_scheduler_type lr_decay_style",
    ),
    (("train.warmup_steps",), "", "warmup lr_warmup_steps warmup_iters num_warmup_steps"),
    (
        ("train.warmup_steps",),
        "which counts steps, not a share of them",
        "warmup_ratio warmup_fraction",
    ),
    (("train.weight_decay",), "", "wd l2"),
    (
        ("train.clip_grad",),
        "",
        "grad_clip max_grad_norm grad_norm gradient_clip gradient_clip_val gradient_clipping",
    ),
    # How long, and how much at a time.
    (
        ("train.max_steps",),
        "",
        "steps num_steps n_steps total_steps train_steps train_iters max_iters num_iterations "
        "iterations",
    ),
    (
        ("train.max_steps",),
        "which counts optimizer steps, not epochs",
        "epochs epoch max_epochs num_epochs n_epochs num_train_epochs",
    ),
    (("train.global_batch_size",), "", "batch_size bs gbs total_batch_size train_batch_size"),
    (
        ("train.micro_batch_size",),
        "",
        "mbs microbatch_size per_device_train_batch_size batch_size_per_gpu "
        "train_micro_batch_size_per_gpu",
    ),
    (
        ("train.global_batch_size",),
        "the clips of all ranks and all accumulated micro batches",
        "gradient_accumulation gradient_accumulation_steps grad_accum accumulate_grad_batches",
    ),
    # GPUs.
    (("train.gpus",), "", "num_gpus n_gpus ngpus devices num_devices world_size nproc_per_node"),
    (
        ("train.tensor_parallel",),
        "",
        "tp tp_size tensor_parallel_size tensor_model_parallel_size model_parallel_size",
    ),
    (
        ("train.tensor_parallel",),
        "the one way in which a model is spread over GPUs",
        "pp pp_size pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size fsdp",
    ),
    (("train.context_parallel",), "", "cp cp_size context_parallel_size ulysses"),
    (
        ("train.gpus",),
        "of which tensor_parallel times context_parallel share a sample",
        "dp dp_size data_parallel data_parallel_size",
    ),
    (("train.sequence_parallel",), "", "sp"),
    (
        ("train.recompute",),
        "",
        "gradient_checkpointing activation_checkpointing activations_checkpoint_granularity "
        "recompute_granularity",
    ),
    (("train.precision",), "", "dtype torch_dtype mixed_precision amp bf16 fp16 fp32"),
    # Checkpoints, validation, logging.
    (
        ("train.init_from",),
        "the weights to start from",
        "checkpoint ckpt ckpt_path checkpoint_path pretrained pretrained_model "
        "pretrained_model_name_or_path model_name_or_path model_path weights load restore_from "
        "restore_from_path",
    ),
    (
        ("train.init_from",),
        "the weights to start from; a run resumes when its command is repeated",
        "resume resume_from resume_from_checkpoint resume_from_path",
    ),
    (
        ("train.save_every",),
        "",
        "save_steps save_interval save_freq checkpoint_every checkpoint_interval "
        "every_n_train_steps",
    ),
    (("train.keep_checkpoints",), "", "save_total_limit save_top_k keep_last"),
    (
        ("train.validate_every",),
        "",
        "eval_every eval_steps eval_interval val_every val_interval val_check_interval "
        "validation_interval",
    ),
    (("train.validation_batches",), "", "limit_val_batches eval_iters val_batches"),
    (("train.wandb.project",), "", "wandb wandb_project use_wandb project_name"),
    (("train.wandb.entity",), "", "wandb_entity wandb_team"),
    (("train.wandb.tags",), "", "wandb_tags"),
    (("train.tensorboard",), "", "tensorboard_dir use_tensorboard"),
    (("train.lora.rank",), "", "lora lora_rank lora_r lora_dim use_lora peft"),
    (("train.lora.alpha",), "", "lora_alpha"),
    (("train.lora.dropout",), "", "lora_dropout"),
    (("train.lora.targets",), "", "target_modules lora_target_modules"),
    (("train.freeze",), "", "frozen freeze_layers frozen_layers"),
    # Data.
    (
        ("data.input",),
        "",
        "input data_path data_dir data_root dataset dataset_path dataset_dir videos video_dir "
        "train_data",
    ),
    (
        ("data.frames",),
        "from which, with height and width, the length of a sequence follows",
        "seq_len seq_length sequence_length max_seq_len max_length context_length block_size",
    ),
    (
        ("data.frames",),
        "",
        "num_frames n_frames clip_length clip_len video_length num_video_frames",
    ),
    (
        ("data.height", "data.width"),
        "",
        "resolution image_size img_size video_size frame_size",
    ),
    (("data.frame_rate",), "", "fps target_fps video_fps framerate"),
    (("data.decoders",), "", "num_workers workers dataloader_num_workers"),
    (("data.split.validation",), "", "val_split validation_split val_fraction"),
    # The model.
    (("model.num_layers",), "", "n_layers n_layer layers depth num_hidden_layers"),
    (("model.hidden_size",), "", "dim d_model hidden_dim n_embd embed_dim"),
    (("model.ffn_hidden_size",), "", "intermediate_size ffn_dim d_ff"),
    (("model.num_attention_heads",), "", "n_heads n_head num_heads"),
    (("model.num_query_groups",), "", "n_kv_heads num_kv_heads num_key_value_heads"),
    (("model.kv_channels",), "", "head_dim"),
    (("model.rotary_base",), "", "rope_theta rope_base"),
    # Samples.
    (("generate.samples",), "", "num_samples n_samples num_videos num_return_sequences"),
    (("generate.temperature",), "", "temp"),
    (("generate.top_p",), "", "topp nucleus"),
    (("generate.seconds",), "", "duration"),
    (("generate.guard",), "", "guardrail guardrails safety_checker"),
    # Where it runs.
    (
        ("cluster.runs",),
        "the folder of all runs",
        "output output_dir output_path out_dir outdir save_dir log_dir work_dir run_dir runs "
        "results_dir exp_dir explicit_log_dir",
    ),
    (
        ("--name",),
        "which names the run",
        "name run_name exp_name experiment experiment_name job_name",
    ),
    (("cluster.gpu",), "the type of the GPUs", "gpu gpu_type"),
    (("cluster.parallel",), "", "parallel max_parallel array_parallelism"),
    *(
        ((setting,), "of profiles of kind slurm", words)
        for setting, words in (
            ("cluster.gpu_partition", "partition queue gpu_partition slurm_partition"),
            ("cluster.cpu_partition", "cpu_partition"),
            ("cluster.account", "account slurm_account"),
            ("cluster.qos", "qos"),
            ("cluster.time.train", "time walltime time_limit timelimit timeout max_time"),
            ("cluster.nodes", "nodes num_nodes n_nodes nnodes"),
            ("cluster.gpus_per_node", "gpus_per_node ntasks_per_node"),
            ("cluster.cpus_per_gpu", "cpus_per_gpu cpus_per_task cpus"),
            ("cluster.gres", "gres"),
            ("cluster.container", "container container_image image sif"),
            ("cluster.mounts", "mounts container_mounts bind binds volumes"),
            ("cluster.setup", "setup modules module_load prologue"),
            ("cluster.environment", "environment env env_vars"),
            ("cluster.mem_per_gpu", "mem_per_gpu mem memory"),
            ("cluster.sbatch", "sbatch constraint reservation nodelist exclude"),
        )
    ),
)

#: By word, for recipes, where settings of the cluster are written with their prefix.
SYNONYMS = {
    word: Synonym(settings, but) for settings, but, words in _TABLE for word in words.split()
}


def _of_clusters() -> dict[str, Synonym]:
    """Those of the cluster without the prefix, as profiles and the checks of them know them."""
    found = {}
    for word, synonym in SYNONYMS.items():
        bare = tuple(s.removeprefix("cluster.") for s in synonym.settings)
        if bare != synonym.settings:
            found[word] = Synonym(bare, synonym.but)
    return found


#: By word, for cluster profiles.
CLUSTER_SYNONYMS = _of_clusters()
