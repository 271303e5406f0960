use std::path::Path;

use super::*;
use crate::config::Run;
use crate::config::fields::SECTIONS;

fn message(text: &str) -> String {
    Run::parse(text, "run.toml", Path::new("")).expect_err(text).to_string()
}

#[track_caller]
fn check(text: &str, suggestion: &str) {
    let message = message(text);
    assert!(message.contains(suggestion), "{suggestion:?} is not in: {message}");
}

fn fields() -> Vec<(&'static str, Vec<&'static str>)> {
    let names = |fields: &'static [crate::config::fields::Field]| fields.iter().map(|field| field.name);
    SECTIONS.iter().map(|section| (section.name, names(section.fields).collect())).collect()
}

#[test]
fn every_synonym_leads_from_its_section_to_its_field() {
    let known = fields();
    for (path, synonyms) in FIELDS {
        let (section, field) = split(path);
        let names = if section.is_empty() { top_level(&known) } else { fields_of(&known, section).collect() };
        assert!(names.contains(&field), "{path} is no field");
        for synonym in *synonyms {
            assert!(!names.contains(synonym), "{synonym} is a field itself");
            let suggestion = for_field(&known, section, synonym, None);
            assert_eq!(suggestion, Some(format!("Did you mean `{path}`?")), "{synonym}");
        }
    }
}

#[test]
fn former_names_get_the_present_one() {
    for (section, former, present) in [
        ("model", "width", "hidden_size"),
        ("model", "layers", "num_hidden_layers"),
        ("model", "heads", "num_attention_heads"),
        ("model", "kv_heads", "num_key_value_heads"),
        ("model", "ffn", "intermediate_size"),
        ("model", "context", "max_position_embeddings"),
        ("model", "vocab", "vocab_size"),
        ("model", "norm_epsilon", "rms_norm_eps"),
        ("pipeline", "window", "max_in_flight"),
        ("pipeline", "microbatches_per_update", "gradient_accumulation_steps"),
        ("boundary", "code", "rank"),
        ("optimizer", "updates", "steps"),
        ("optimizer", "warmup_updates", "warmup_steps"),
        ("optimizer", "final_share", "min_lr_ratio"),
        ("optimizer", "clip_microbatch", "max_grad_norm_ratio"),
        ("optimizer", "clip_stage", "max_grad_norm"),
        ("averaging", "every", "interval"),
        ("averaging", "sets", "fragments"),
    ] {
        check(
            &format!("[{section}]\n{former} = 3\n"),
            &format!("unknown field `{section}.{former}`. Did you mean `{section}.{present}`?"),
        );
    }
}

#[test]
fn a_slip_in_a_synonym_is_understood() {
    check("[model]\nwidht = 64\n", "Did you mean `model.hidden_size`?");
    check("[optimizer]\nmax_step = 64\n", "Did you mean `optimizer.steps`?");
}

#[test]
fn a_field_in_the_wrong_section_is_sent_home() {
    check("[model]\nlearning_rate = 0.1\n", "Did you mean `optimizer.learning_rate`?");
    check("n_embd = 64\n", "Did you mean `model.hidden_size`?");
    check("lr = 0.1\n", "Did you mean `optimizer.learning_rate`?");
    // Two sections have such a field.
    assert!(!message("kind = \"none\"\n").contains("Did you mean"));
}

#[test]
fn equal_names_mean_what_their_section_makes_of_them() {
    check("[model]\neps = 1e-6\n", "Did you mean `model.rms_norm_eps`?");
    check("[optimizer]\neps = 1e-6\n", "Did you mean `optimizer.epsilon`?");
}

#[test]
fn a_former_value_is_translated_with_its_field() {
    let stash = |value: &str| format!("[pipeline]\nstash = \"{value}\"\n");
    check(&stash("input"), "Did you mean `pipeline.activation_checkpointing = true`?");
    check(&stash("activations"), "Did you mean `pipeline.activation_checkpointing = false`?");
    check(&stash("disk"), "Did you mean `pipeline.activation_checkpointing`?");
}

#[test]
fn a_name_without_a_field_is_answered_with_what_to_do() {
    check("epochs = 3\n", "`optimizer.steps` sets its length");
    check("[optimizer]\nnum_train_epochs = 3\n", "`optimizer.steps` sets its length");
    check("[optimizer]\nlr_scheduler_type = \"cosine\"\n", "`optimizer.min_lr_ratio`");
    check("[pipeline]\ndevice = \"cuda\"\n", "--device");
}

#[test]
fn a_word_of_another_program_gets_ours() {
    for (section, field, word, meant) in [
        ("boundary", "kind", "nothing", "\"none\""),
        ("boundary", "kind", "dense", "\"identity\""),
        ("boundary", "packing", "int8", "\"q8\""),
        ("boundary", "packing", "bfloat16", "\"bf16\""),
        ("pipeline", "mode", "sync", "\"synchronous\""),
        ("optimizer", "kind", "adam", "\"adamw\""),
        ("optimizer", "kind", "nadamv", "\"nadamw\""),
        ("policy", "join", "all", "\"anyone\""),
    ] {
        check(
            &format!("[{section}]\n{field} = \"{word}\"\n"),
            &format!("`{section}.{field}` is \"{word}\". Allowed: "),
        );
        check(&format!("[{section}]\n{field} = \"{word}\"\n"), &format!("Did you mean {meant}?"));
    }
}

#[test]
fn every_meaning_is_a_value_that_its_field_takes() {
    for (path, meanings) in VALUES {
        for (value, _) in *meanings {
            let (section, field) = split(path);
            let text = format!("[{section}]\n{field} = {value}\n[data]\npaths = [\"text\"]\n");
            if let Err(error) = Run::parse(&text, "run.toml", Path::new("")) {
                panic!("{error}");
            }
        }
    }
}

#[test]
fn what_is_like_nothing_gets_no_suggestion() {
    for name in ["colour", "x", &"width".repeat(50)] {
        assert_eq!(for_field(&fields(), "model", name, None), None);
    }
    assert_eq!(for_word("boundary.packing", "zip", &["f32", "q8"]), None);
}
