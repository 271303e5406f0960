//! Text files: hidden, binary, empty, linked, and too short.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarmline_scheduler::MicrobatchId;
use tempfile::TempDir;

use super::*;
use crate::config::Run;

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn run(data: &str) -> Run {
    let text =
        format!("seed = 7\n[model]\nmax_position_embeddings = 16\n[batch]\nsequences = 3\n[data]\n{data}\n");
    Run::parse(&text, "run.toml", Path::new("")).unwrap()
}

fn open(folder: &TempDir, data: &str) -> Result<Corpus, DataError> {
    Corpus::open(&run(data), folder.path())
}

/// Many different files of text.
fn library() -> TempDir {
    let texts: Vec<(String, String)> = (0..60)
        .map(|i| (format!("book/{i:02}.txt"), format!("{i} is a number, and so is {}.\n", i * i).repeat(4)))
        .collect();
    folder(&texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect::<Vec<_>>())
}

fn check_refused(files: &[(&str, &[u8])], data: &str, says: &[&str]) {
    let message = open(&folder(files), data).expect_err(data).to_string();
    for part in says {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

const LONG: &[u8] = &[b'a'; 400];

#[test]
fn paths_that_lead_nowhere() {
    check_refused(&[], "paths = [\"missing\"]", &["missing", "no such file", "relative to the run file"]);
    check_refused(&[("a", b"")], "paths = [\"a\"]", &["a: the file is empty"]);
    check_refused(&[("a", b" \n\n")], "paths = [\"a\"]", &["a: the file is empty"]);
    let wanted = "paths = [\".\"]\nextensions = [\"rs\", \"md\"]";
    check_refused(&[("a.txt", LONG)], wanted, &["looked for rs, md", "1 other", "data.extensions"]);
    check_refused(&[("d/.hidden", LONG)], "paths = [\"d\"]", &["no text found"]);
    let socket = std::os::unix::net::UnixListener::bind;
    let place = tempfile::tempdir().unwrap();
    let _listener = socket(place.path().join("s")).unwrap();
    let error = open(&place, "paths = [\"s\"]").unwrap_err();
    assert!(matches!(error, DataError::NotAFile { .. }), "{error}");
}

#[test]
fn unreadable_files_are_named() {
    // A path below a file cannot be opened, even by root.
    check_refused(&[("a", LONG)], "paths = [\"a/b\"]", &["a/b", "cannot be read", "leave it out"]);
}

#[test]
fn a_named_file_that_is_binary_is_refused() {
    check_refused(&[("a", b"text\0text")], "paths = [\"a\"]", &["a: not text", "NUL"]);
    check_refused(&[("a", &[0xff; 100])], "paths = [\"a\"]", &["a: not text", "UTF-8"]);
}

#[test]
fn a_binary_file_in_a_directory_is_left_out_and_counted() {
    let place = folder(&[("d/a.txt", LONG), ("d/b.bin", b"\0\0"), ("d/c.txt", b"")]);
    let corpus = open(&place, "paths = [\"d\"]").unwrap();
    assert_eq!((corpus.files(), corpus.skipped()), (1, 1));
    check_refused(&[("d/b.bin", b"\0")], "paths = [\"d\"]", &["1 binary"]);
}

#[test]
fn too_little_text_for_one_sequence() {
    check_refused(
        &[("a", b"short")],
        "paths = [\"a\"]",
        &["too little text", "one sequence takes 17", "model.max_position_embeddings"],
    );
    check_refused(&[("a", &LONG[..32])], "paths = [\"a\"]", &["too little text", "16 tokens are"]);
    assert!(open(&folder(&[("a", &LONG[..40])]), "paths = [\"a\"]").is_ok());
}

#[test]
fn text_is_normalised() {
    let crlf = "\u{feff}one\r\ntwo\r\n".to_owned() + &"three\r\n".repeat(40) + "end";
    let unix = "one\ntwo\n".to_owned() + &"three\n".repeat(40) + "end\n";
    let corpus = |text: &str| open(&folder(&[("a", text.as_bytes())]), "paths = [\"a\"]").unwrap();
    assert_eq!(corpus(&crlf).digest(), corpus(&unix).digest());
    assert_ne!(corpus(&unix).digest(), corpus(&unix.replace("end", "END")).digest());
}

#[test]
fn a_directory_is_read_by_name_and_a_file_only_once() {
    let place = folder(&[("d/b.txt", LONG), ("d/a.txt", b"first"), ("d/e/c.txt", b"last")]);
    let corpus = open(&place, "paths = [\"d\", \"d/a.txt\"]").unwrap();
    assert_eq!(corpus.files(), 3);
    assert_eq!(corpus.text_bytes(), 401 + 6 + 5);
    assert!(corpus.train().iter().take(5).eq(b"first".iter().map(|&b| u32::from(b))));
}

#[test]
#[cfg(unix)]
fn links_inside_directories_are_not_followed() {
    let place = folder(&[("d/a.txt", LONG), ("outside/secret.txt", LONG)]);
    std::os::unix::fs::symlink(place.path().join("outside"), place.path().join("d/link")).unwrap();
    std::os::unix::fs::symlink(place.path().join("d"), place.path().join("d/loop")).unwrap();
    assert_eq!(open(&place, "paths = [\"d\"]").unwrap().files(), 1);
}

#[test]
fn the_split_depends_on_seed_and_text_only() {
    let (here, there) = (library(), library());
    let data = "paths = [\"book\"]\nheldout = 0.2";
    let first = open(&here, data).unwrap();
    let second = open(&there, data).unwrap();
    assert_eq!(first.heldout(), second.heldout());
    assert_eq!(first.train(), second.train());
    assert_eq!(first.train().len() + first.heldout().len(), first.text_bytes() as usize);
    let share = first.heldout().len() as f64 / first.text_bytes() as f64;
    assert!((0.05..0.4).contains(&share), "{share}");

    let mut other = run(data);
    other.seed = 8;
    assert_ne!(Corpus::open(&other, here.path()).unwrap().heldout(), first.heldout());
}

#[test]
fn a_single_file_is_split_at_its_end() {
    let text: Vec<u8> = (0..1000u32).flat_map(|i| format!("{i}\n").into_bytes()).collect();
    let corpus = open(&folder(&[("a", &text)]), "paths = [\"a\"]\nheldout = 0.1").unwrap();
    let held = text.len() / 10;
    assert!(corpus.heldout().iter().eq(text[text.len() - held..].iter().map(|&b| u32::from(b))));
    assert_eq!(corpus.train().len(), text.len() - held);
}

/// Either file is too far from the share, so the seed cannot choose one.
#[test]
fn a_draw_far_from_the_share_falls_back_to_the_largest_file() {
    let large: Vec<u8> = (0..20_000u32).flat_map(|i| format!("{i}\n").into_bytes()).collect();
    let place = folder(&[("d/large", &large), ("d/small", LONG)]);
    for seed in 0..20 {
        let mut run = run("paths = [\"d\"]\nheldout = 0.3");
        run.seed = seed;
        let corpus = Corpus::open(&run, place.path()).unwrap();
        let share = corpus.heldout().len() as f64 / corpus.text_bytes() as f64;
        assert!((0.29..0.31).contains(&share), "seed {seed}: {share}");
    }
}

#[test]
fn a_microbatch_is_a_function_of_seed_and_number() {
    let place = library();
    let run = run("paths = [\"book\"]");
    let corpus = Arc::new(Corpus::open(&run, place.path()).unwrap());
    let batches = Batches::new(&run, Arc::clone(&corpus));
    let again = Batches::new(&run, Arc::new(Corpus::open(&run, place.path()).unwrap()));
    let train = |m| batches.train(MicrobatchId(m));
    assert_eq!(train(3).len(), 3 * 17);
    assert_eq!(train(3), again.train(MicrobatchId(3)));
    assert_ne!(train(3), train(4));
    assert_ne!(train(u64::MAX), train(0));
    assert_eq!(batches.heldout(0), again.heldout(0));
    assert_ne!(batches.heldout(0), batches.heldout(1));

    let mut other = run.clone();
    other.seed += 1;
    assert_ne!(Batches::new(&other, corpus).train(MicrobatchId(3)), train(3));
}

#[test]
fn every_sequence_is_a_stretch_of_its_own_side() {
    let place = library();
    let run = run("paths = [\"book\"]\nheldout = 0.2");
    let corpus = Arc::new(Corpus::open(&run, place.path()).unwrap());
    let batches = Batches::new(&run, Arc::clone(&corpus));
    let stretches =
        |tokens: &TokenStream| tokens.iter().collect::<Vec<_>>().windows(17).map(<[u32]>::to_vec).collect();
    let (train, heldout): (Vec<Vec<u32>>, Vec<Vec<u32>>) =
        (stretches(corpus.train()), stretches(corpus.heldout()));
    for number in 0..50 {
        assert!(
            batches.train(MicrobatchId(number)).chunks(17).all(|row| train.iter().any(|seen| seen == row))
        );
        assert!(batches.heldout(number).chunks(17).all(|row| heldout.iter().any(|seen| seen == row)));
    }
}

#[test]
fn draws_reach_both_ends_of_the_text() {
    let place = folder(&[("a", &(0..120).collect::<Vec<u8>>().iter().map(|b| b + 1).collect::<Vec<_>>())]);
    let run = run("paths = [\"a\"]\nheldout = 0.3");
    let corpus = Arc::new(Corpus::open(&run, place.path()).unwrap());
    let batches = Batches::new(&run, Arc::clone(&corpus));
    let firsts: std::collections::BTreeSet<u32> = (0..400)
        .flat_map(|m| batches.train(MicrobatchId(m)).chunks(17).map(|row| row[0]).collect::<Vec<_>>())
        .collect();
    let starts = corpus.train().len() - 17 + 1;
    assert_eq!(firsts.len(), starts);
}

/// A vocabulary of words with a gap in its ids.
const WORDS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "to": 1, "be": 2, "or": 3, "not": 400}, "unk_token": "<unk>"}}"#;

#[test]
fn a_tokenizer_file_gives_vocabulary_and_ids() {
    let text = "to be or not to be, that\n".repeat(20);
    let place = folder(&[("a.txt", text.as_bytes()), ("words.json", WORDS.as_bytes())]);
    let file = |name: &str| {
        format!(
            "[model]\nmax_position_embeddings = 16\n[data]\npaths = [\"a.txt\"]\ntokenizer = \"{name}\"\n"
        )
    };
    let run = Run::parse(&file("words.json"), "run.toml", place.path()).unwrap();
    assert_eq!(run.model.vocab_size, 401);
    let corpus = Corpus::open(&run, place.path()).unwrap();
    assert!(corpus.train().iter().take(8).eq([1, 2, 3, 400, 1, 2, 0, 0]));
    let tokenizer = TextTokenizer::load(&run.data.tokenizer, place.path()).unwrap();
    assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "to be");

    let small =
        file("words.json").replace("max_position_embeddings", "vocab_size = 400\nmax_position_embeddings");
    let error = Run::parse(&small, "run.toml", place.path()).unwrap_err();
    assert_eq!((error.line(), error.field()), (Some(2), Some("model.vocab_size")));
    let error = Run::parse(&file("a.txt"), "run.toml", place.path()).unwrap_err();
    assert_eq!((error.line(), error.field()), (Some(5), Some("data.tokenizer")), "{error}");
    let mut narrow = run.clone();
    narrow.model.vocab_size = 300;
    let error = Corpus::open(&narrow, place.path()).unwrap_err();
    assert!(matches!(error, DataError::OutsideVocabulary { id: 400, vocab: 300, .. }), "{error}");
}

#[test]
fn the_tokenizer_file_is_part_of_the_manifest() {
    let place =
        folder(&[("a.json", WORDS.as_bytes()), ("b.json", WORDS.replace("\"or\"", "\"and\"").as_bytes())]);
    let digest = |name: &str| {
        let text = format!("name = \"n\"\n[data]\npaths = [\"a\"]\ntokenizer = \"{name}\"\n");
        let run = Run::parse(&text, "run.toml", place.path()).unwrap();
        crate::config::Manifest::of(&run, place.path()).unwrap().digest()
    };
    assert_ne!(digest("a.json"), digest("b.json"));
    fs::copy(place.path().join("a.json"), place.path().join("c.json")).unwrap();
    assert_eq!(digest("a.json"), digest("c.json"));
}

#[test]
fn bigrams_of_a_cycle_are_nearly_certain_and_of_noise_are_not() {
    let cycle = || (0..4000u32).map(|i| i % 4);
    assert!(bigram_loss(cycle(), cycle(), 4) < 0.02);
    let noise = |salt: u32| {
        (0..20_000u32).map(move |i| {
            u32::from(blake3::hash(&[i.to_le_bytes(), salt.to_le_bytes()].concat()).as_bytes()[0]) % 16
        })
    };
    let loss = bigram_loss(noise(1), noise(2), 16);
    assert!((loss - 16f64.ln()).abs() < 0.05, "{loss}");
    assert_eq!(bigram_loss(cycle(), std::iter::empty(), 4), 0.0);
}

#[test]
fn bigrams_never_seen_still_have_a_chance() {
    let loss = bigram_loss([0, 1, 0, 1].into_iter(), [2, 2, 0, 3].into_iter(), 4);
    assert!(loss.is_finite() && loss > 1.0, "{loss}");
    // p(0) = 3/8; after 0 always 1: (2 + 1 x 3/8) / (2 + 1).
    let by_hand = -((3.0f64 / 8.0).ln() + (2.375f64 / 3.0).ln()) / 2.0;
    assert!((bigram_loss([0, 1, 0, 1].into_iter(), [0, 1].into_iter(), 4) - by_hand).abs() < 1e-12);
}

#[test]
fn a_large_vocabulary_gives_the_same_bigrams() {
    let text = || b"a sparse map and a dense table count the same pairs".iter().map(|&b| u32::from(b));
    let shares = |vocab: usize| bigram_loss(text(), text(), vocab);
    // Only the floor of the unigram shares differs: the vocabularies are almost as large.
    assert!((shares(2048) - shares(2049)).abs() < 1e-3);
}

#[test]
fn sources_are_hand_written_and_in_order() {
    let code = b"fn main() {\n    run();\n}\n".repeat(20);
    let long = format!("const T: &[u8] = \"{}\";\n", "x".repeat(500));
    let place = folder(&[
        ("registry/src/index/zeta-1.0.0/src/lib.rs", &code),
        ("registry/src/index/alpha-1.0.0/src/lib.rs", &code),
        ("registry/src/index/alpha-1.0.0/src/generated/x.rs", &code),
        ("registry/src/index/alpha-1.0.0/src/head.rs", b"// @generated by a tool\nfn f() {}\n"),
        ("registry/src/index/alpha-1.0.0/src/table.rs", long.as_bytes()),
        ("registry/src/index/alpha-1.0.0/src/large.rs", &code.repeat(1000)),
        ("registry/src/index/alpha-1.0.0/src/notes.md", &code),
        ("registry/src/index/alpha-1.0.0/build.rs", &code),
    ]);
    let found = sources::find_in(place.path()).unwrap();
    let names =
        |path: &PathBuf| path.strip_prefix(place.path().join("registry/src/index")).unwrap().to_owned();
    let names: Vec<PathBuf> = found.data.paths.iter().map(names).collect();
    assert_eq!(names, [PathBuf::from("alpha-1.0.0/src/lib.rs"), PathBuf::from("zeta-1.0.0/src/lib.rs")]);
    assert!(found.description.starts_with("2 hand-written Rust files of 2 crates"), "{}", found.description);
    assert_eq!(sources::find_in(place.path()).unwrap(), found);
}

#[test]
fn a_machine_without_sources_is_told_what_to_do() {
    let message = sources::find_in(Path::new("nowhere")).unwrap_err().to_string();
    assert!(message.contains("nowhere") && message.contains("--data PATH"), "{message}");
}

/// On a machine that has just built this program, the demo has text, and its bigram loss is that of source code.
#[test]
fn the_sources_of_this_machine_make_a_corpus() {
    let Ok(found) = sources::find() else { return };
    let mut run = run("paths = [\"x\"]");
    run.data = found.data;
    let corpus = Arc::new(Corpus::open(&run, Path::new("")).unwrap());
    let batches = Batches::new(&run, Arc::clone(&corpus));
    let clock = std::time::Instant::now();
    let drawn: usize = (0..1000).map(|m| batches.train(MicrobatchId(m)).len()).sum();
    let each = clock.elapsed() / 1000;
    println!("{}; {drawn} ids, {each:?} a microbatch", found.description);
    if corpus.text_bytes() > 1_000_000 {
        let loss = corpus.bigram_loss();
        println!("bigram loss {loss:.4}, held out {} of {}", corpus.heldout().len(), corpus.text_bytes());
        assert!((2.2..3.0).contains(&loss), "{loss}");
    }
}
