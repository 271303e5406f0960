//! Other names for the fields and words of a run file: of Hugging Face, of other trainers, and of earlier versions.

/// Names that people try, by the path of the field or section that has them.
pub(super) const FIELDS: &[(&str, &[&str])] = &[
    ("name", &["run_name", "run", "title"]),
    ("seed", &["random_seed", "manual_seed"]),
    ("model", &["architecture", "transformer", "llama"]),
    ("pipeline", &["parallelism", "parallel"]),
    ("boundary", &["compression", "codec"]),
    ("batch", &["microbatch"]),
    ("optimizer", &["optim", "training", "train", "trainer"]),
    ("averaging", &["diloco", "sync"]),
    ("data", &["dataset", "datasets"]),
    ("policy", &["access"]),
    ("model.hidden_size", &["width", "d_model", "n_embd", "dim", "embed_dim", "model_dim"]),
    ("model.num_hidden_layers", &["layers", "n_layer", "n_layers", "num_layers", "depth"]),
    ("model.num_attention_heads", &["heads", "n_head", "n_heads", "num_heads"]),
    ("model.num_key_value_heads", &["kv_heads", "n_kv_head", "n_kv_heads", "num_kv_heads"]),
    ("model.intermediate_size", &["ffn", "d_ff", "ffn_dim", "ffn_size", "mlp_dim", "ffn_hidden_size"]),
    (
        "model.max_position_embeddings",
        &[
            "context",
            "context_length",
            "block_size",
            "seq_len",
            "seq_length",
            "sequence_length",
            "max_seq_len",
            "max_seq_length",
            "n_ctx",
            "n_positions",
        ],
    ),
    ("model.vocab_size", &["vocab", "n_vocab"]),
    ("model.rope_theta", &["theta", "rope_base"]),
    ("model.rms_norm_eps", &["norm_epsilon", "norm_eps", "layer_norm_eps", "epsilon", "eps"]),
    ("pipeline.stages", &["num_stages", "pipeline_stages", "pipeline_parallel_size", "pp"]),
    ("pipeline.replicas", &["num_replicas", "data_parallel_size", "dp"]),
    ("pipeline.mode", &["async", "synchronous"]),
    ("pipeline.max_in_flight", &["window", "in_flight", "max_inflight", "num_microbatches"]),
    (
        "pipeline.gradient_accumulation_steps",
        &[
            "microbatches_per_update",
            "accumulation",
            "accumulation_steps",
            "grad_accumulation_steps",
            "grad_accum_steps",
            "grad_accum",
            "accumulate_grad_batches",
        ],
    ),
    (
        "pipeline.activation_checkpointing",
        &["stash", "gradient_checkpointing", "checkpointing", "activation_checkpoint", "recompute"],
    ),
    ("boundary.kind", &["type", "codec"]),
    ("boundary.rank", &["code", "code_dim", "bottleneck", "k"]),
    ("boundary.packing", &["dtype", "quantization", "bits"]),
    ("batch.sequences", &["size", "batch_size", "micro_batch_size", "per_device_train_batch_size"]),
    ("optimizer.kind", &["type", "name", "algorithm"]),
    ("optimizer.learning_rate", &["lr", "max_lr", "peak_lr"]),
    ("optimizer.warmup_steps", &["warmup_updates", "warmup", "num_warmup_steps", "warmup_iters"]),
    (
        "optimizer.steps",
        &["updates", "max_steps", "total_steps", "train_steps", "num_steps", "max_iters", "iterations"],
    ),
    ("optimizer.min_lr_ratio", &["final_share", "min_lr", "min_lr_rate", "lr_min", "eta_min"]),
    ("optimizer.beta1", &["adam_beta1", "betas"]),
    ("optimizer.beta2", &["adam_beta2"]),
    ("optimizer.epsilon", &["eps", "adam_epsilon"]),
    ("optimizer.weight_decay", &["wd", "decay"]),
    ("optimizer.max_grad_norm_ratio", &["clip_microbatch"]),
    ("optimizer.skip_grad_norm_ratio", &["spike_guard", "skip_spikes", "skip_grad_norm"]),
    (
        "optimizer.max_grad_norm",
        &["clip_stage", "grad_clip", "clip_grad", "clip_grad_norm", "gradient_clipping", "gradient_clip_val"],
    ),
    ("averaging.interval", &["every", "period", "sync_every", "inner_steps"]),
    ("averaging.fragments", &["sets", "shards", "num_fragments", "partitions"]),
    ("data.paths", &["path", "files", "train_files", "text"]),
    ("data.extensions", &["suffixes", "endings", "file_types"]),
    ("data.tokenizer", &["tokenizer_file", "tokenizer_path", "tokenizer_name"]),
    ("data.heldout", &["val_ratio", "val_split", "validation_split", "eval_split"]),
    ("data.heldout_microbatches", &["eval_iters", "eval_batches"]),
    ("policy.join", &["allow", "allowlist", "peers"]),
    ("policy.feed", &["feeders", "succeed", "owner"]),
    ("policy.weights", &["keep", "keepers", "checkpoints"]),
];

/// Names for which a run file has no field, each with an advice.
pub(super) const WITHOUT_FIELD: &[(&[&str], &str)] = &[
    (
        &["epochs", "num_epochs", "num_train_epochs", "max_epochs"],
        "A run has no epochs: it draws text at random, and `optimizer.steps` sets its length.",
    ),
    (
        &["lr_scheduler", "lr_scheduler_type", "scheduler"],
        "The schedule is a linear warm-up of `optimizer.warmup_steps`, then a cosine down to `optimizer.min_lr_ratio`.",
    ),
    (
        &["device", "threads"],
        "Each process chooses its own device: see --device and --threads of `swarmline join`.",
    ),
];

/// Values in TOML, each with the texts that stand for it.
pub(super) type Meanings = &'static [(&'static str, &'static [&'static str])];

/// Values that people try, by the path of the field and the value they stand for in TOML.
pub(super) const VALUES: &[(&str, Meanings)] = &[
    ("pipeline.mode", &[("\"asynchronous\"", &["async"]), ("\"synchronous\"", &["sync", "gpipe"])]),
    (
        "pipeline.activation_checkpointing",
        &[("true", &["input", "full", "recompute"]), ("false", &["activations", "none"])],
    ),
    (
        "boundary.kind",
        &[
            ("\"none\"", &["nothing", "off", "zero"]),
            ("\"identity\"", &["dense", "full", "raw"]),
            ("\"subspace\"", &["low_rank", "lowrank", "compressed"]),
        ],
    ),
    (
        "boundary.packing",
        &[
            ("\"f32\"", &["fp32", "float32", "float"]),
            ("\"bf16\"", &["bfloat16", "fp16", "float16"]),
            ("\"q8\"", &["int8", "8bit"]),
            ("\"q4\"", &["int4", "4bit"]),
        ],
    ),
    ("optimizer.kind", &[("\"adamw\"", &["adam", "adamw_torch"]), ("\"nadamw\"", &["nadam", "nesterov"])]),
    ("policy.join", &[("\"anyone\"", &["all", "any", "open", "public"])]),
    ("policy.weights", &[("\"open\"", &["anyone", "whole"]), ("\"split\"", &["closed", "private", "never"])]),
];
