use std::path::Path;

use swarmline_scheduler::MicrobatchId;
use tempfile::TempDir;

use super::huggingface::{Dtype, write, write_cut};
use super::*;
use crate::config::{Kind, Packing, Run, Tokenizer};
use crate::data::{TextTokenizer, TokenStream};
use crate::model::tests::{cpu, stage, tiny, tokens};
use crate::model::{Shard, Upstream};

const KINDS: [Kind; 3] = [Kind::Identity, Kind::Subspace, Kind::None];
const MICROBATCH: MicrobatchId = MicrobatchId(1);

/// A run of three stages that has saved them, and room for an export.
struct Case {
    folder: TempDir,
    run: Run,
}

impl Case {
    fn new(kind: Kind) -> Self {
        let mut run = tiny(kind, Packing::F32);
        run.model.vocab_size = 256;
        let folder = tempfile::tempdir().unwrap();
        let saved = folder.path().join("saved");
        std::fs::create_dir(&saved).unwrap();
        for index in 0..run.pipeline.stages as u16 {
            let bytes = stage(&run, index).snapshot(Default::default()).unwrap();
            std::fs::write(saved.join(format!("stage-{index}.safetensors")), bytes).unwrap();
        }
        Self { folder, run }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn saved(&self) -> Result<SavedRun, WeightsError> {
        SavedRun::open(&self.path("saved"), self.run.clone(), self.folder.path().to_owned(), 1)
    }

    fn export(&self, dtype: Dtype) -> Result<HuggingFace, WeightsError> {
        write(&self.path("exported"), &mut self.saved()?, dtype, &self.run, self.folder.path())?;
        HuggingFace::open(&self.path("exported"))
    }

    /// Loss of the stages of the run.
    fn loss_of_run(&self) -> f64 {
        let tokens = tokens(&self.run, MICROBATCH);
        let mut code = Vec::new();
        for index in 0..self.run.last_stage().0 {
            code = stage(&self.run, index).evaluate(MICROBATCH, &tokens, &code).unwrap();
        }
        let mut last = stage(&self.run, self.run.last_stage().0);
        last.evaluate_loss(MICROBATCH, &tokens, &code, Upstream::Connected).unwrap().sum
    }

    /// Loss of the same microbatch in one piece with these weights.
    fn loss_of(&self, weights: &mut dyn Weights) -> f64 {
        let run = self.run.in_one_piece(*weights.model());
        let mut shard = Shard::new(cpu(), &run, 0..run.model.num_hidden_layers, 0).unwrap();
        for parameter in dense_parameters(&run.model) {
            shard.upload(&parameter.name, &weights.read(&parameter.name).unwrap()).unwrap();
        }
        let tokens = tokens(&run, MICROBATCH);
        shard.evaluate_loss(MICROBATCH, &tokens, &[], Upstream::Connected).unwrap().sum
    }
}

#[test]
fn an_exported_model_computes_what_the_stages_of_its_run_compute() {
    for kind in KINDS {
        let case = Case::new(kind);
        let (expected, found) = (case.loss_of_run(), case.loss_of(&mut case.export(Dtype::F32).unwrap()));
        assert!((found - expected).abs() < 1e-5 * expected, "{kind:?}: {found} for {expected}");
    }
}

#[test]
fn the_parameters_of_a_model_in_one_piece_are_those_of_a_run_with_one_stage() {
    let run = tiny(Kind::Identity, Packing::F32).in_one_piece(tiny(Kind::None, Packing::Q8).model);
    let expected = run.parameter_specs(0..4).into_iter().map(|spec| (spec.name, spec.shape));
    let found = dense_parameters(&run.model).into_iter().map(|parameter| (parameter.name, parameter.shape));
    assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn nothing_before_a_cut_that_nothing_crosses_is_exported() {
    let mut exported = Case::new(Kind::None).export(Dtype::F32).unwrap();
    assert_eq!(exported.model().num_hidden_layers, 1);
    let anchor = stage(&Case::new(Kind::None).run, 2).download("layers.3.anchor").unwrap();
    assert_eq!(Some(exported.read("embed").unwrap()), anchor);
}

#[test]
fn bf16_changes_the_loss_by_little() {
    let case = Case::new(Kind::Subspace);
    let (expected, found) = (case.loss_of_run(), case.loss_of(&mut case.export(Dtype::Bf16).unwrap()));
    assert!(found != expected && (found - expected).abs() < 0.02 * expected, "{found} for {expected}");
}

#[test]
fn a_model_in_several_files_is_read_back_by_its_index() {
    let case = Case::new(Kind::Subspace);
    let mut saved = case.saved().unwrap();
    write_cut(&case.path("exported"), &mut saved, Dtype::F32, &case.run, Path::new(""), 20_000).unwrap();
    assert!(case.path("exported/model-00002-of-00004.safetensors").is_file());
    assert!(!case.path("exported/model.safetensors").exists());
    let mut exported = HuggingFace::open(&case.path("exported")).unwrap();
    for parameter in dense_parameters(&case.run.model) {
        assert_eq!(exported.read(&parameter.name).unwrap(), saved.read(&parameter.name).unwrap());
    }
}

#[test]
fn the_exported_byte_tokenizer_gives_every_byte_its_own_value() {
    let case = Case::new(Kind::Identity);
    let tokenizer = case.export(Dtype::F32).unwrap().tokenizer().unwrap();
    let ascii: String = (0..128).map(char::from).collect();
    let text = format!("{ascii} \n\n  äöü 漢字 \u{10FFFF}\r\n\u{a0}\u{ad}x");
    let ids = tokenizer.encode(text.as_bytes()).unwrap();
    assert_eq!(
        ids.iter().collect::<Vec<_>>(),
        TokenStream::Bytes(text.clone().into()).iter().collect::<Vec<_>>()
    );
    assert_eq!(tokenizer.decode(&ids.iter().collect::<Vec<_>>()).unwrap(), text);
    assert_eq!(tokenizer.vocab(), 256);
}

#[test]
fn a_run_takes_a_folder_with_its_sizes_and_its_tokenizer_only() {
    let case = Case::new(Kind::Identity);
    let exported = case.export(Dtype::F32).unwrap();
    exported.check_run(&case.run, case.folder.path()).unwrap();
    let mut longer = case.run.clone();
    longer.model.max_position_embeddings = 99;
    exported.check_run(&longer, case.folder.path()).unwrap();

    let mut wider = case.run.clone();
    wider.model.hidden_size = 32;
    let error = exported.check_run(&wider, case.folder.path()).unwrap_err().to_string();
    assert!(error.contains("hidden_size is 16, but the run has 32"), "{error}");

    let mut other = case.run.clone();
    std::fs::write(case.path("other.json"), "{}").unwrap();
    other.data.tokenizer = Tokenizer::File("other.json".into());
    let error = exported.check_run(&other, case.folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("[data]"), "{error}");
}

#[test]
fn a_target_that_holds_files_is_refused_and_stays_as_it_was() {
    let case = Case::new(Kind::Identity);
    std::fs::create_dir(case.path("exported")).unwrap();
    std::fs::write(case.path("exported/mine"), "text").unwrap();
    let error = case.export(Dtype::F32).unwrap_err().to_string();
    assert!(error.contains("not empty") && error.contains("another folder"), "{error}");
    assert_eq!(std::fs::read_dir(case.path("exported")).unwrap().count(), 1);
    std::fs::remove_file(case.path("exported/mine")).unwrap();
    case.export(Dtype::F32).unwrap();
}

#[test]
fn an_export_that_fails_leaves_nothing_behind() {
    let mut case = Case::new(Kind::Identity);
    case.run.data.tokenizer = Tokenizer::File("nowhere.json".into());
    let error = case.export(Dtype::F32).unwrap_err().to_string();
    assert!(error.contains("nowhere.json"), "{error}");
    assert_eq!(std::fs::read_dir(case.folder.path()).unwrap().count(), 1, "the saved run alone");
}

/// Opens a folder of saved stages after `spoil`; the message must have these parts.
#[track_caller]
fn expect_bad_save(spoil: impl FnOnce(&mut Case), parts: &[&str]) {
    let mut case = Case::new(Kind::Subspace);
    spoil(&mut case);
    expect_parts(&case.saved().unwrap_err(), parts);
}

/// Opens an exported folder after `spoil`; the message must have these parts.
#[track_caller]
fn expect_bad_folder(spoil: impl FnOnce(&Path), parts: &[&str]) {
    let case = Case::new(Kind::Identity);
    case.export(Dtype::F32).unwrap();
    spoil(&case.path("exported"));
    let opened = HuggingFace::open(&case.path("exported"));
    let error = opened.and_then(|folder| folder.tokenizer()).unwrap_err();
    expect_parts(&error, parts);
}

#[track_caller]
fn expect_parts(error: &WeightsError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn a_folder_that_lacks_a_stage_or_is_of_another_run_is_refused() {
    let remove = |case: &mut Case| std::fs::remove_file(case.path("saved/stage-1.safetensors")).unwrap();
    expect_bad_save(remove, &["saved", "layers.2.attention_norm", "all stages"]);
    let remove = |case: &mut Case| std::fs::remove_dir_all(case.path("saved")).unwrap();
    expect_bad_save(remove, &["saved: there is no such folder", "train --save"]);
    let twice = |case: &mut Case| {
        std::fs::copy(case.path("saved/stage-0.safetensors"), case.path("saved/a.safetensors")).unwrap();
    };
    expect_bad_save(twice, &["a.safetensors and", "one file of each stage"]);
    expect_bad_save(|case| case.run.boundary.rank = 8, &["embed has shape [256, 4]", "[256, 8]", "--run"]);
    let empty = |case: &mut Case| {
        std::fs::remove_dir_all(case.path("saved")).unwrap();
        std::fs::create_dir(case.path("saved")).unwrap();
    };
    expect_bad_save(empty, &["no .safetensors file", "train --save"]);
}

#[test]
fn a_safetensors_file_that_is_torn_or_none_is_refused() {
    let file = "saved/stage-0.safetensors";
    let torn = |case: &mut Case| {
        let bytes = std::fs::read(case.path(file)).unwrap();
        std::fs::write(case.path(file), &bytes[..bytes.len() - 1]).unwrap();
    };
    expect_bad_save(torn, &["stage-0.safetensors", "its header promises", "Copy it again"]);
    for bytes in [&b""[..], b"text", b"12345678", &[255; 64]] {
        let foreign = |case: &mut Case| std::fs::write(case.path(file), bytes).unwrap();
        expect_bad_save(foreign, &["stage-0.safetensors", "not a whole safetensors file"]);
    }
}

#[test]
fn a_number_that_is_not_finite_is_named() {
    let case = Case::new(Kind::Identity);
    let mut last = stage(&case.run, 2);
    let (cpu, params) = last.backend_and_params();
    swarmline_kernels::Backend::fill(cpu, &mut params.get_mut("norm").unwrap().weight, f32::NAN, 1).unwrap();
    let bytes = last.snapshot(Default::default()).unwrap();
    std::fs::write(case.path("saved/stage-2.safetensors"), bytes).unwrap();
    expect_parts(&case.export(Dtype::F32).unwrap_err(), &["norm", "not finite", "saved before"]);
}

#[test]
fn a_folder_that_lacks_a_file_or_has_a_foreign_one_is_refused() {
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    expect_bad_folder(remove("config.json"), &["no config.json", "swarmline export"]);
    expect_bad_folder(remove("model.safetensors"), &["model.safetensors", "index"]);
    expect_bad_folder(remove("tokenizer.json"), &["no tokenizer.json", "Copy"]);
    let put = |name: &'static str, text: &'static str| {
        move |folder: &Path| std::fs::write(folder.join(name), text).unwrap()
    };
    expect_bad_folder(put("config.json", "{}"), &["config.json", "model_type", "LlamaForCausalLM"]);
    expect_bad_folder(put("tokenizer.json", "{}"), &["tokenizer.json", "not a tokenizer"]);
    let outside = r#"{"metadata": {}, "weight_map": {"a": "../model.safetensors"}}"#;
    expect_bad_folder(
        put("model.safetensors.index.json", outside),
        &["../model.safetensors", "no name of a file"],
    );
}

#[test]
fn a_model_that_this_program_does_not_compute_is_refused() {
    let replace = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let path = folder.join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(path, text.replace(from, to)).unwrap();
        }
    };
    expect_bad_folder(replace("\"llama\"", "\"mistral\""), &["mistral", "Only LLaMA"]);
    expect_bad_folder(replace("\"silu\"", "\"gelu\""), &["gelu"]);
    expect_bad_folder(replace("\"mlp_bias\": false", "\"mlp_bias\": true"), &["biases"]);
    let scaled = "\"rope_scaling\": {\"rope_type\": \"llama3\"}";
    expect_bad_folder(replace("\"rope_scaling\": null", scaled), &["scaled (llama3)"]);
    expect_bad_folder(replace("\"head_dim\": 4", "\"head_dim\": 8"), &["head_dim is 8"]);
    expect_bad_folder(replace("\"hidden_size\": 16", "\"hidden_size\": 0"), &["hidden_size"]);
    expect_bad_folder(replace("\"vocab_size\": 256", "\"vocab_size\": 255"), &["[256, 16]", "[255, 16]"]);
}

#[test]
fn a_head_that_shares_the_embedding_is_read() {
    let case = Case::new(Kind::Identity);
    case.export(Dtype::F32).unwrap();
    let path = case.path("exported/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let shared = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    std::fs::write(path, shared).unwrap();
    let mut folder = HuggingFace::open(&case.path("exported")).unwrap();
    assert_eq!(folder.read("head").unwrap(), folder.read("embed").unwrap());
}

/// A vocabulary of the run may have gaps at its end; so may its tokenizer be the smaller of the two.
#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let case = Case::new(Kind::Identity);
    let folder = case.export(Dtype::F32).unwrap();
    assert!(folder.tokenizer().is_ok());
    let bytes = TextTokenizer::load(&Tokenizer::Bytes, Path::new("")).unwrap();
    assert_eq!(folder.tokenizer().unwrap().vocab(), bytes.vocab());
    let path = case.path("exported/tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen(": 255", ": 300", 1)).unwrap();
    expect_parts(&folder.tokenizer().unwrap_err(), &["301 entries", "vocab_size of the model is 256"]);
}
