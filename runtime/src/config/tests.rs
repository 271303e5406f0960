//! Run files, right and wrong.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use swarmline_scheduler::StageIndex;

use super::*;

const MINIMAL: &str = "[data]\npaths = [\"text\"]\n";

const FULL: &str = r#"name = "full"
seed = 18446744073709551615

[model]
hidden_size = 64
num_hidden_layers = 5
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 100
max_position_embeddings = 32
vocab_size = 300
rope_theta = 500000.0
rms_norm_eps = 1e-6

[pipeline]
stages = 3
layers_per_stage = [2, 2, 1]
mode = "synchronous"
max_in_flight = 3
initial_in_flight = 2
gradient_accumulation_steps = 4
activation_checkpointing = true

[boundary]
kind = "subspace"
rank = 16
packing = "q4"
anchor_scale = 0.1

[batch]
sequences = 2

[optimizer]
kind = "adamw"
learning_rate = 3e-4
warmup_steps = 7
steps = 70
min_lr_ratio = 0
beta1 = 0.8
beta2 = 0.9
epsilon = 1e-9
weight_decay = 0.01
momentum_decay = 0.1
max_grad_norm_ratio = 0
skip_grad_norm_ratio = 50
max_grad_norm = 0.5
staleness_power = 0.25

[averaging]
interval = 5
fragments = 7

[data]
paths = ["a", "b \"quoted\""]
extensions = ["rs", "rst.txt"]
tokenizer = "bytes"
heldout = 0.1
heldout_microbatches = 3

[policy]
join = ["d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"]
feed = ["d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"]
"#;

fn parse(text: &str) -> Result<Run, ConfigError> {
    Run::parse(text, "run.toml", Path::new(""))
}

/// A minimal file with one line put at the top of a section; the mistake is on line 2.
fn with(section: &str, line: &str) -> String {
    match section {
        "" => format!("\n{line}\n{MINIMAL}"),
        "data" => format!("[data]\n{line}\npaths = [\"text\"]\n"),
        section => format!("[{section}]\n{line}\n{MINIMAL}"),
    }
}

/// Asserts that the message names file, line and field, and every part of `says`.
fn check_refused(text: &str, line: usize, field: &str, says: &[&str]) {
    let error = parse(text).expect_err(text);
    let message = error.to_string();
    assert_eq!(error.line(), Some(line), "{message}");
    assert_eq!(error.field(), Some(field), "{message}");
    assert!(message.starts_with(&format!("run.toml:{line}: ")), "{message}");
    assert!(message.contains(&format!("`{field}`")), "{message}");
    for part in says {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message:?}");
}

#[test]
fn a_minimal_file_gets_every_default() {
    let run = parse(MINIMAL).unwrap();
    assert_eq!(run.name, "run");
    assert_eq!((run.model.hidden_size, run.model.num_hidden_layers), (128, 4));
    assert_eq!((run.model.num_attention_heads, run.model.num_key_value_heads), (4, 4));
    assert_eq!((run.model.intermediate_size, run.model.vocab_size), (352, 256));
    assert_eq!(run.pipeline.layers_per_stage, [1, 1, 1, 1]);
    assert_eq!((run.pipeline.mode, run.pipeline.initial_in_flight), (Mode::Asynchronous, 8));
    assert_eq!(run.pipeline.max_in_flight, 64);
    assert_eq!(
        (run.boundary.kind, run.boundary.rank, run.boundary.packing),
        (Kind::Subspace, 16, Packing::Q8)
    );
    assert_eq!((run.optimizer.kind, run.optimizer.beta1), (OptimizerKind::NAdamW, 0.99));
    assert_eq!((run.optimizer.staleness_power, run.optimizer.warmup_steps), (1.0, 100));
    assert_eq!(run.averaging, Averaging { interval: 16, fragments: 20 });
    assert_eq!(run.data.paths, [PathBuf::from("text")]);
    assert_eq!((&run.data.tokenizer, &run.policy.join), (&Tokenizer::Bytes, &Join::Anyone));
    assert_eq!(run.policy.feed, Feed::First);
}

#[test]
fn defaults_follow_what_is_written() {
    let synchronous =
        parse(&with("pipeline", "mode = \"synchronous\"\ngradient_accumulation_steps = 6")).unwrap();
    assert_eq!((synchronous.pipeline.max_in_flight, synchronous.optimizer.staleness_power), (6, 0.0));
    let fixed = parse(&with("pipeline", "max_in_flight = 5")).unwrap().pipeline;
    assert_eq!((fixed.initial_in_flight, fixed.max_in_flight), (5, 5));
    let grows = parse(&with("pipeline", "initial_in_flight = 5")).unwrap().pipeline;
    assert_eq!((grows.initial_in_flight, grows.max_in_flight), (5, 40));
    let adamw = parse(&with("optimizer", "kind = \"adamw\"\nsteps = 50")).unwrap();
    assert_eq!((adamw.optimizer.beta1, adamw.optimizer.beta2, adamw.optimizer.warmup_steps), (0.9, 0.95, 5));
    let listed = parse(&with("policy", &format!("join = [\"{}\"]", "0".repeat(64)))).unwrap();
    assert_eq!(listed.policy.feed, Feed::Members);
    let cut = parse(&with("pipeline", "layers_per_stage = [3, 1]")).unwrap();
    assert_eq!(cut.pipeline.stages, 2);
    let uneven = parse(&with("model", "num_hidden_layers = 6")).unwrap();
    assert_eq!(uneven.pipeline.layers_per_stage, [2, 2, 1, 1]);
    assert_eq!(uneven.layers_of(StageIndex(2)), 4..5);
}

#[test]
fn every_field_can_be_written() {
    let run = parse(FULL).unwrap();
    assert_eq!(run.seed, u64::MAX);
    assert_eq!((run.pipeline.activation_checkpointing, run.boundary.packing), (true, Packing::Q4));
    assert_eq!((run.optimizer.learning_rate, run.optimizer.min_lr_ratio), (3e-4, 0.0));
    assert!(matches!(run.policy.join, Join::Keys(ref keys) if keys.len() == 1));
    assert!(matches!(run.policy.feed, Feed::Keys(ref keys) if keys.len() == 1));
}

#[test]
fn slips_of_the_finger_get_a_suggestion() {
    check_refused(
        &with("model", "hiden_size = 64"),
        2,
        "model.hiden_size",
        &["Did you mean `model.hidden_size`?"],
    );
    check_refused(
        &with("pipeline", "stage = 2"),
        2,
        "pipeline.stage",
        &["`pipeline.stages`", "max_in_flight"],
    );
    check_refused("[modle]\nhidden_size = 1\n", 1, "modle", &["Did you mean `model`?"]);
    check_refused(&with("", "sede = 1"), 2, "sede", &["`seed`"]);
    check_refused(
        &with("boundary", "kind = \"subspcae\""),
        2,
        "boundary.kind",
        &["\"subspace\"?", "\"none\""],
    );
    check_refused(&with("boundary", "packing = \"zip\""), 2, "boundary.packing", &["\"q8\"", "\"f32\""]);
    check_refused(
        &with("model", "colour = 1"),
        2,
        "model.colour",
        &["Known here: hidden_size, num_hidden_layers"],
    );
    check_refused("[policy]\njoin = \"friends\"\n[data]\npaths=[\"a\"]", 2, "policy.join", &["\"anyone\""]);
}

#[test]
fn values_of_the_wrong_type() {
    check_refused(
        &with("model", "hidden_size = \"wide\""),
        2,
        "model.hidden_size",
        &["the text \"wide\"", "whole number"],
    );
    check_refused(
        &with("model", "hidden_size = -4"),
        2,
        "model.hidden_size",
        &["the number -4", "0 or more"],
    );
    check_refused(&with("model", "hidden_size = 1.5"), 2, "model.hidden_size", &["1.5", "whole number"]);
    check_refused(
        &with("optimizer", "learning_rate = true"),
        2,
        "optimizer.learning_rate",
        &["true", "a number"],
    );
    check_refused(
        &with("pipeline", "activation_checkpointing = \"full\""),
        2,
        "pipeline.activation_checkpointing",
        &["the text \"full\"", "true or false"],
    );
    check_refused(&with("boundary", "kind = 3"), 2, "boundary.kind", &["one of \"identity\""]);
    check_refused(&with("data", "extensions = \"rs\""), 2, "data.extensions", &["a list of texts"]);
    check_refused("[data]\npaths = \"text\"\n", 2, "data.paths", &["a list of texts"]);
    check_refused("[data]\npaths = [\n \"text\",\n 1979-05-27]\n", 4, "data.paths[1]", &["a date"]);
    check_refused(&with("pipeline", "layers_per_stage = [1, \"2\"]"), 2, "pipeline.layers_per_stage[1]", &[]);
    check_refused(&with("", "model = 3"), 2, "model", &["a section"]);
    check_refused(&with("", "name = 3"), 2, "name", &["a text in quotes"]);
    check_refused(&with("policy", "join = true"), 2, "policy.join", &["\"anyone\""]);
}

#[test]
fn impossible_sizes() {
    let sizes = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
    ];
    for name in sizes {
        check_refused(&with("model", &format!("{name} = 0")), 2, &format!("model.{name}"), &["is 0"]);
        let huge = format!("{name} = 9223372036854775807");
        check_refused(&with("model", &huge), 2, &format!("model.{name}"), &["9223372036854775807"]);
    }
    check_refused(
        &with("model", "num_attention_heads = 3"),
        2,
        "model.num_attention_heads",
        &["does not divide model.hidden_size = 128", "1, 2, 4"],
    );
    check_refused(
        &with("model", "hidden_size = 30\nnum_attention_heads = 10"),
        3,
        "model.num_attention_heads",
        &["odd width 3"],
    );
    check_refused(
        &with("model", "num_key_value_heads = 3"),
        2,
        "model.num_key_value_heads",
        &["does not divide model.num_attention_heads = 4"],
    );
    check_refused(&with("model", "vocab_size = 100"), 2, "model.vocab_size", &["100", "256 entries"]);
    check_refused(&with("batch", "sequences = 0"), 2, "batch.sequences", &["is 0"]);
    check_refused(&with("batch", "sequences = 60000"), 2, "batch.sequences", &["tokens a microbatch"]);
    let large =
        "hidden_size = 65536\nintermediate_size = 262144\nnum_hidden_layers = 1024\n[pipeline]\nstages = 1";
    check_refused(&with("model", large), 6, "pipeline.stages", &["parameters", "Cut into more"]);
    let wide = "hidden_size = 65536\nmax_position_embeddings = 131072\n[batch]\nsequences = 2";
    check_refused(&with("model", wide), 5, "batch.sequences", &["bytes a microbatch"]);
}

#[test]
fn impossible_pipelines() {
    check_refused(&with("pipeline", "stages = 0"), 2, "pipeline.stages", &["is 0"]);
    check_refused(
        &with("pipeline", "stages = 5"),
        2,
        "pipeline.stages",
        &["more than model.num_hidden_layers = 4"],
    );
    check_refused(&with("pipeline", "max_in_flight = 0"), 2, "pipeline.max_in_flight", &["is 0"]);
    let larger = with("pipeline", "max_in_flight = 4\ninitial_in_flight = 5");
    check_refused(&larger, 3, "pipeline.initial_in_flight", &["is 5", "4"]);
    let accumulated = "pipeline.gradient_accumulation_steps";
    check_refused(&with("pipeline", "gradient_accumulation_steps = 0"), 2, accumulated, &["is 0"]);
    let cut = "pipeline.layers_per_stage";
    check_refused(
        &with("pipeline", "layers_per_stage = [1, 2]"),
        2,
        cut,
        &["sums to 3", "model.num_hidden_layers = 4"],
    );
    check_refused(&with("pipeline", "layers_per_stage = [4, 0]"), 2, cut, &["gives stage 1 no layer"]);
    check_refused(&with("pipeline", "layers_per_stage = [4]\nstages = 2"), 2, cut, &["names 1 stages"]);
}

#[test]
fn impossible_boundaries() {
    check_refused(
        &with("boundary", "rank = 129"),
        2,
        "boundary.rank",
        &["more than model.hidden_size = 128"],
    );
    check_refused(&with("boundary", "rank = 0"), 2, "boundary.rank", &["is 0"]);
    check_refused(&with("boundary", "anchor_scale = 0"), 2, "boundary.anchor_scale", &["above 0"]);
    // A default can clash with a written value: the line is that of the section.
    check_refused(
        "[boundary]\nkind = \"subspace\"\nrank = 9\n[model]\nhidden_size = 8\n[data]\npaths = [\"a\"]\n",
        3,
        "boundary.rank",
        &[],
    );
}

#[test]
fn impossible_numbers() {
    let fields = [
        "learning_rate",
        "min_lr_ratio",
        "beta1",
        "beta2",
        "epsilon",
        "weight_decay",
        "momentum_decay",
        "max_grad_norm_ratio",
        "skip_grad_norm_ratio",
        "max_grad_norm",
        "staleness_power",
    ];
    for name in fields {
        for value in ["nan", "inf", "-inf", "-0.5", "1e40", "20000000"] {
            check_refused(
                &with("optimizer", &format!("{name} = {value}")),
                2,
                &format!("optimizer.{name}"),
                &["Allowed"],
            );
        }
    }
    let turned_around = "learning_rate = 0.5\nweight_decay = 2.0";
    check_refused(&with("optimizer", turned_around), 3, "optimizer.weight_decay", &["0.5", "below 1"]);
    check_refused(&with("optimizer", "steps = 0"), 2, "optimizer.steps", &["is 0"]);
    check_refused(&with("optimizer", "warmup_steps = 2000"), 2, "optimizer.warmup_steps", &["0 to 1000"]);
    check_refused(&with("optimizer", "beta1 = 1"), 2, "optimizer.beta1", &["below 1"]);
    for (name, value) in [("rope_theta", "nan"), ("rope_theta", "0"), ("rms_norm_eps", "-1e-5")] {
        check_refused(
            &with("model", &format!("{name} = {value}")),
            2,
            &format!("model.{name}"),
            &["Allowed"],
        );
    }
    for value in ["0", "1", "1.5", "-0.1", "nan"] {
        check_refused(
            &with("data", &format!("heldout = {value}")),
            2,
            "data.heldout",
            &["above 0 and below 1"],
        );
    }
}

#[test]
fn impossible_averaging() {
    check_refused(&with("averaging", "fragments = 0"), 2, "averaging.fragments", &["is 0", "1 to 4096"]);
    check_refused(&with("averaging", "fragments = 4097"), 2, "averaging.fragments", &["is 4097", "Lower it"]);
    check_refused(&with("averaging", "fragments = 0.05"), 2, "averaging.fragments", &["whole number"]);
    check_refused(&with("averaging", "interval = -1"), 2, "averaging.interval", &["the number -1"]);
    check_refused(
        &with("averaging", "interval = 9223372036854775807"),
        2,
        "averaging.interval",
        &["Lower it"],
    );
    check_refused(&with("averaging", "fragment = 20"), 2, "averaging.fragment", &["`averaging.fragments`?"]);
    assert_eq!(
        parse(&with("averaging", "interval = 0")).unwrap().averaging,
        Averaging { interval: 0, fragments: 20 }
    );
}

#[test]
fn impossible_choices() {
    check_refused("[model]\nhidden_size = 64\n", 1, "data.paths", &["missing", "paths = ["]);
    check_refused("\n[data]\n", 2, "data.paths", &["missing"]);
    check_refused("\n[data]\npaths = []\n", 3, "data.paths", &["missing"]);
    check_refused("[data]\npaths = [\"\"]\n", 2, "data.paths", &["empty path"]);
    check_refused(&with("data", "extensions = [\".rs\"]"), 2, "data.extensions", &["dot"]);
    check_refused(&with("data", "heldout_microbatches = 0"), 2, "data.heldout_microbatches", &["is 0"]);
    check_refused(&with("policy", "join = []"), 2, "policy.join", &["no peer"]);
    check_refused(&with("policy", "feed = []"), 2, "policy.feed", &["0 keys", "\"members\""]);
    check_refused(&with("policy", "feed = [\"abc\"]"), 2, "policy.feed", &["number 1", "64 hexadecimal"]);
    check_refused(&with("policy", "join = [\"abc\"]"), 2, "policy.join", &["number 1", "64 hexadecimal"]);
    let secret = format!("{SECRET_MARK}{}", "5e".repeat(32));
    for field in ["join", "feed"] {
        let pasted = with("policy", &format!("{field} = [\"{}\", \"{secret}\"]", "0".repeat(64)));
        let message = parse(&pasted).unwrap_err().to_string();
        assert!(!message.contains("5e5e"), "a message must not show a secret: {message}");
        check_refused(&pasted, 2, &format!("policy.{field}"), &["number 2", "secret", "swarmline key FILE"]);
    }
    check_refused(&with("", "name = \"\""), 2, "name", &["is not a name"]);
    check_refused(
        &with("data", "tokenizer = \"no-such.json\""),
        2,
        "data.tokenizer",
        &["no-such.json", "\"bytes\""],
    );
}

#[test]
fn text_that_is_not_toml() {
    for (text, line) in
        [("[model\n", 1), ("\n\nhidden_size = \n", 3), ("a = 1\na = 2\n", 2), ("x = \"open", 1)]
    {
        let error = parse(text).expect_err(text);
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
        assert_eq!(error.line(), Some(line), "{error}");
    }
}

#[test]
fn files_that_are_no_run_files() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Run::load(&folder.path().join("missing.toml")).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Unreadable { .. }) && missing.to_string().contains("missing.toml")
    );
    let path = folder.path().join("latin.toml");
    std::fs::write(&path, b"seed = 1\nname = \"\xe9\"\n").unwrap();
    assert!(matches!(Run::load(&path).unwrap_err(), ConfigError::NotText { line: 2, .. }));
    std::fs::write(&path, vec![b'#'; limits::CONFIG_BYTES_MAX + 10]).unwrap();
    assert!(matches!(Run::load(&path).unwrap_err(), ConfigError::TooLong { .. }));
    std::fs::write(&path, MINIMAL).unwrap();
    assert_eq!(Run::load(&path).unwrap().name, "latin");
}

/// A hostile file: deep recursion and long lists.
#[test]
fn deep_and_long_files_are_refused() {
    let room = limits::CONFIG_BYTES_MAX / 8;
    let texts = [
        format!("a = {}", "[".repeat(room)),
        format!("a = {}", "{a=".repeat(room / 3)),
        format!("{} = 1", vec!["a"; room / 2].join(".")),
        format!("[{}]", vec!["a"; room / 2].join(".")),
        format!("[data]\npaths = [{}]", "1,".repeat(room / 2)),
        format!("[pipeline]\nlayers_per_stage = [{}]\n[data]\npaths = [\"a\"]", "1,".repeat(room / 2)),
        "[a]\n".repeat(room / 4),
        (0..room / 14).map(|i| format!("key{i} = 1\n")).collect(),
        format!("a = \"{}\"", "x".repeat(room)),
        "\"".repeat(room),
        format!("seed = {}", "9".repeat(room)),
    ];
    for text in texts {
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.len() < 300, "{message}");
    }
}

#[test]
fn the_annotated_run_reads_back_as_the_same_run() {
    for text in [MINIMAL, FULL] {
        let run = parse(text).unwrap();
        let annotated = run.to_annotated_toml();
        assert_eq!(Run::parse(&annotated, "other.toml", Path::new("")).unwrap(), run, "{annotated}");
        let comments = annotated.lines().filter(|line| line.starts_with('#')).count();
        assert_eq!(comments, annotated.lines().filter(|line| line.contains(" = ")).count());
        assert!(annotated.contains("One of: identity, subspace, none."), "{annotated}");
    }
}

/// Relative to the folder of the package, where cargo starts tests. The folder known at compile time is no use:
/// checkouts that share a target folder share test binaries.
const EXAMPLES: &str = "../examples/configs";

#[test]
fn all_example_configs_are_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(EXAMPLES).unwrap() {
        let path = entry.unwrap().path();
        let run = Run::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            std::fs::read_to_string(&path).unwrap().starts_with("# "),
            "{} begins with its purpose",
            path.display()
        );
        assert_eq!(run.name.replace('-', "_"), path.file_stem().unwrap().to_str().unwrap());
        for data in &run.data.paths {
            assert!(path.parent().unwrap().join(data).exists(), "{}", data.display());
        }
        seen += 1;
    }
    assert!(seen >= 4);
}

/// The header of the file says so.
#[test]
fn the_laptop_model_has_about_a_million_parameters() {
    let run = Run::load(&Path::new(EXAMPLES).join("laptop.toml")).unwrap();
    assert!((900_000..1_200_000).contains(&run.parameters()), "{}", run.parameters());
}

#[test]
fn a_manifest_leaves_out_what_is_the_coordinators_own() {
    let run = parse(FULL).unwrap();
    let manifest = Manifest::of(&run, Path::new("")).unwrap();
    let mut other = run.clone();
    other.data.paths = vec!["elsewhere".into()];
    other.policy.join = Join::Anyone;
    assert_eq!(Manifest::of(&other, Path::new("")).unwrap().digest(), manifest.digest());
    assert!(manifest.run().data.paths.is_empty());
    assert_eq!(manifest.run().model, run.model);
    other.optimizer.learning_rate = 4e-4;
    assert_ne!(Manifest::of(&other, Path::new("")).unwrap().digest(), manifest.digest());
}

/// A change of this digest means that programs before and after it refuse each other: raise [`PROTOCOL`] with it.
#[test]
fn the_digest_of_a_fixed_run_is_golden() {
    let manifest = Manifest::of(&parse(FULL).unwrap(), Path::new("")).unwrap();
    let digest = data_encoding::HEXLOWER.encode(&manifest.digest());
    assert_eq!(
        digest,
        "91772d0b8c42042b974da2b740777532c88696ead8b8e3ef10cde475bb0a3909",
        "{}",
        String::from_utf8(manifest.to_bytes()).unwrap()
    );
}

#[test]
fn a_manifest_reads_back() {
    for text in [MINIMAL, FULL] {
        let manifest = Manifest::of(&parse(text).unwrap(), Path::new("")).unwrap();
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).unwrap(), manifest);
    }
}

#[test]
fn a_manifest_from_a_stranger_is_held_to_the_rules() {
    let honest = Manifest::of(&parse(FULL).unwrap(), Path::new("")).unwrap().to_bytes();
    let honest = String::from_utf8(honest).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(honest.contains(from), "{from}");
        Manifest::from_bytes(honest.replace(from, to).as_bytes()).expect_err(to)
    };
    let huge = edit("hidden_size = 64", "hidden_size = 6400000000");
    assert_eq!(huge.field(), Some("model.hidden_size"));
    assert!(matches!(edit("protocol = 6", "protocol = 1"), ConfigError::Protocol { theirs: 1, ours: 6, .. }));
    assert!(matches!(edit("hidden_size = 64", "hidden_size = 0x40"), ConfigError::NotCanonical { .. }));
    assert!(matches!(edit("intermediate_size = 100\n", ""), ConfigError::NotCanonical { .. }));
    assert_eq!(edit("heldout =", "paths = [\"/\"]\nheldout =").field(), Some("data.paths"));
    assert_eq!(edit("tokenizer_digest = \"", "tokenizer_digest = \"zz").field(), Some("tokenizer_digest"));
    assert_eq!(edit("tokenizer_vocab = 256", "tokenizer_vocab = 301").field(), Some("model.vocab_size"));
    assert!(matches!(Manifest::from_bytes(&[0xff]), Err(ConfigError::NotText { .. })));
    let long = vec![b' '; limits::MANIFEST_BYTES_MAX + 1];
    assert!(matches!(Manifest::from_bytes(&long), Err(ConfigError::TooLong { .. })));
}

#[test]
fn parameters_are_counted_by_stage() {
    let mut run = parse(&with("boundary", "kind = \"identity\"")).unwrap();
    // 4 layers of 4 x 128 x 128 + 3 x 128 x 352 + 2 x 128, embedding, head and final norm.
    assert_eq!(run.parameters(), 4 * (65_536 + 135_168 + 256) + 2 * 256 * 128 + 128);
    assert_eq!(run.stage_parameters(StageIndex(1)), 65_536 + 135_168 + 256);
    run.boundary.kind = Kind::Subspace;
    assert_eq!(
        run.stage_parameters(StageIndex(0)),
        256 * 16 + 3 * 16_384 + 128 * 16 + 352 * (256 + 16) + 256
    );
    run.boundary.kind = Kind::None;
    assert_eq!(run.stage_parameters(StageIndex(1)), 65_536 + 135_168 + 256 + 256 * 128, "with its anchor");
}

/// Pieces that keep an edited file TOML and make it wrong.
const PIECES: &[&str] = &[
    "0",
    "-1",
    "1e999",
    "nan",
    "9223372036854775808",
    "\"",
    "[",
    "]",
    "{}",
    "\n",
    "=",
    "#",
    "true",
    "''",
    "é",
    "\0",
    "[[model]]\n",
    "model.hidden_size = 1\n",
    "\r",
    "1979-05-27",
    "0xffffffffffffffff",
    "[model]\n",
    ".",
];

proptest! {
    #[test]
    fn no_text_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, prop::sample::select(PIECES)), 1..6),
        from_manifest in any::<bool>(),
    ) {
        let manifest = || String::from_utf8(Manifest::of(&parse(FULL).unwrap(), Path::new("")).unwrap().to_bytes());
        let mut text: Vec<char> = if from_manifest { manifest().unwrap() } else { FULL.to_owned() }.chars().collect();
        for (at, removed, piece) in edits {
            let start = at.index(text.len() + 1);
            let end = (start + removed).min(text.len());
            text.splice(start..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = Manifest::from_bytes(text.as_bytes());
        match parse(&text) {
            Ok(run) => prop_assert_eq!(parse(&run.to_annotated_toml()).unwrap(), run),
            Err(error) => prop_assert!(error.line().is_none_or(|line| line >= 1 && line <= text.lines().count() + 1)),
        }
    }

    #[test]
    fn noise_does_not_make_it_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
        let _ = Manifest::from_bytes(text.as_bytes());
    }
}
