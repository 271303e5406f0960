//! Messages name a person's mistake in a sentence, and exit codes tell mistakes in usage from failures and refusals.

use std::net::TcpListener;

use swarmline::net::{Identity, Invite};
use swarmline::report::Event;

use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use crate::swarm::start_coordinator;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;

/// Runs a command to its end: it must fail with this code and a message with these parts.
#[track_caller]
fn expect_failure(arguments: &[&str], code: i32, parts: &[&str]) {
    let mut process = Process::start(arguments[0], arguments.iter().copied());
    assert_eq!(process.end(), code, "{arguments:?}: {}", process.errors());
    let message = process.errors();
    for part in parts {
        assert!(message.contains(part), "{arguments:?} says {message:?} without {part:?}");
    }
}

#[track_caller]
fn expect_bad_run_file(recipe: &Recipe, parts: &[&str]) {
    expect_failure(&["check", &recipe.write().run_file()], USAGE, parts);
}

#[test]
fn a_run_file_with_a_mistake_is_refused_with_line_and_field() {
    let more = |more: &str| Recipe { more: more.to_owned(), ..Recipe::exact() };
    expect_bad_run_file(&more("[bach]"), &["run.toml:39: ", "`bach`", "Did you mean `batch`?"]);
    expect_bad_run_file(&more("extensions = 3"), &["run.toml:39: ", "`data.extensions`", "number 3"]);
    let none = Recipe { steps: 0, ..Recipe::exact() };
    expect_bad_run_file(&none, &["run.toml:28: ", "`optimizer.steps`"]);
    expect_bad_run_file(&more("tokenizer = \"nowhere.json\""), &["`data.tokenizer`", "nowhere.json"]);
}

/// A shell that starts a command with a standard output that is full.
const FULL: &str = r#"exec "$0" "$@" > /dev/full"#;
/// Likewise, with a pipe that no process reads any more.
const CLOSED: &str = r#"exec 3> >(:); wait $!; exec "$0" "$@" >&3"#;

/// Runs a command by a shell; returns its exit code and its errors.
fn run_by(shell: &str, arguments: &[&str]) -> (i32, String) {
    let mut process = Process::start_under(&["bash", "-c", shell], arguments[0], arguments.iter().copied());
    (process.end(), process.errors())
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_and_a_pipe_that_is_closed_is_none() {
    let folder = Recipe::exact().write();
    let (run_file, saved, key) = (folder.run_file(), folder.argument("saved"), folder.argument("p.key"));
    let mut train = Process::start("train", ["train", "--run", &run_file, "--save", &saved]);
    assert_eq!(train.end(), 0, "{}", train.errors());
    let (one, other) = (folder.argument("one"), folder.argument("other"));
    let generate = ["generate", &saved, "the", "--run", &run_file, "--tokens", "4"];
    for arguments in [
        &["check", &run_file][..],
        &["key", &key],
        &["doctor"],
        &["train", "--run", &run_file],
        &["export", &saved, "--run", &run_file, "--to", &one],
        &generate,
        &[&generate[..], &["--json"]].concat(),
    ] {
        let (code, errors) = run_by(FULL, arguments);
        assert_eq!(code, FAILED, "{arguments:?}: {errors}");
        assert!(errors.contains("cannot write the result to standard output"), "{arguments:?}: {errors}");
    }
    for arguments in
        [&["check", &run_file][..], &["export", &saved, "--run", &run_file, "--to", &other], &generate]
    {
        let (code, errors) = run_by(CLOSED, arguments);
        assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn text_that_is_none_is_refused() {
    let folder = Recipe::exact().write();
    let (run_file, text) = (folder.run_file(), folder.argument("text"));
    let (_coordinator, invite) = start_coordinator(&folder, &[]);
    std::fs::remove_dir_all(&text).unwrap();
    let expect = |reason: &str| {
        expect_failure(&["train", "--run", &run_file], FAILED, &[&text, reason]);
        expect_failure(&["feed", &invite], FAILED, &[&text, reason]);
        expect_failure(&["feed", &invite, "--data", &text], FAILED, &[&text, reason]);
    };
    expect("no such file");
    std::fs::write(&text, "").unwrap();
    expect("is empty");
    std::fs::write(&text, [0, 159, 146, 150].repeat(1000)).unwrap();
    expect("not text");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let run_file = Recipe::exact().write().run_file();
    let train = |device: &str, code, parts: &[&str]| {
        expect_failure(&["train", "--run", &run_file, "--device", device], code, parts);
    };
    train("cuda:99", FAILED, &["cuda"]);
    train("gpu", USAGE, &["gpu", "cuda:N"]);
}

#[test]
fn weights_that_are_none_are_refused() {
    let folder = Recipe { boundary: "subspace", ..Recipe::exact() }.write();
    let (run, text, to) = (folder.run_file(), folder.argument("text"), folder.argument("to"));
    let export = |from: &str, to: &str, parts: &[&str]| {
        expect_failure(&["export", from, "--run", &run, "--to", to], FAILED, parts);
    };
    export(&folder.argument("nowhere"), &to, &["nowhere: there is no such folder", "train --save"]);
    export(&text, &to, &["text", "no .safetensors file", "train --save"]);
    let generate = |from: &str, parts: &[&str]| expect_failure(&["generate", from, "a"], FAILED, parts);
    generate(&text, &["text", "config.json", "--run"]);
    generate(&folder.argument("nowhere"), &["nowhere: there is no such folder", "--run"]);
    let error = ["config.json", "manifest.json", "--run"];
    expect_failure(&["export", &text, "--to", &to], FAILED, &error);
    expect_failure(&["generate", &text, "a", "--top-p", "2"], USAGE, &["from 0 to 1"]);
    let train = ["train", "--run", &run, "--init-from", &text];
    expect_failure(&train, FAILED, &["subspace", "kind = \"identity\""]);

    let saved = folder.argument("saved");
    let mut train = Process::start("train", ["train", "--run", &run, "--save", &saved]);
    assert_eq!(train.end(), 0, "{}", train.errors());
    export(&saved, &text, &["text", "not empty", "another folder"]);
}

#[test]
fn the_doctor_looks_at_any_machine() {
    let mut process = Process::start("doctor", ["doctor", "--json"]);
    assert_eq!(process.end(), 0, "{}", process.errors());
    assert!(process.lines()[0].contains("\"auto\":\"c"), "{:?}", process.lines());
}

#[test]
fn a_taken_port_is_named() {
    let folder = Recipe::exact().write();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = ["coordinator", "--run", &folder.run_file(), "--listen", &address];
    expect_failure(&arguments, FAILED, &["cannot listen on", &address, "--listen"]);
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let invite = format!("{}@{free}", Identity::from_seed([1; 32]).peer());
    expect_failure(&["join", &invite], FAILED, &["cannot reach the coordinator", &free, "is it running?"]);
}

#[test]
fn a_coordinator_with_another_key_is_not_joined() {
    let (_coordinator, invite) = start_coordinator(&Recipe::exact().write(), &[]);
    let expected = Identity::from_seed([1; 32]).peer();
    let presented = invite.parse::<Invite>().unwrap().peer;
    let invite = Invite { peer: expected, ..invite.parse().unwrap() }.to_string();
    let keys = [expected.to_string(), presented.to_string()];
    expect_failure(&["join", &invite], FAILED, &[&keys[0], &keys[1], "fresh invite"]);
}

#[test]
fn a_peer_that_is_not_listed_is_refused() {
    let listed = Identity::from_seed([1; 32]).peer();
    let more = format!("[policy]\njoin = [\"{listed}\"]");
    let folder: RunFolder = Recipe { more, ..Recipe::exact() }.write();
    let (_coordinator, invite) = start_coordinator(&folder, &[]);
    let key_file = folder.argument("volunteer.key");
    let key = public_key(&key_file);
    let refused = ["the coordinator refused", "listed keys only", &key];
    expect_failure(&["join", &invite, "--identity", &key_file], REFUSED, &refused);
}

/// What `swarmline key` prints for a key file.
fn public_key(file: &str) -> String {
    let mut process = Process::start("key", ["key", file, "--json"]);
    assert_eq!(process.end(), 0, "{}", process.errors());
    process.hear("the key", |event| match event {
        Event::Key { key, .. } => Some(key),
        _ => None,
    })
}

#[test]
fn a_volunteer_reads_its_public_key_and_a_pasted_secret_is_refused() {
    expect_failure(&["key"], USAGE, &["swarmline key FILE", "--identity"]);
    let folder = Recipe::exact().write();
    let file = folder.argument("volunteer.key");
    let key = public_key(&file);
    assert_eq!(public_key(&file), key, "the file is created once");
    let invite = format!("{key}@127.0.0.1:1");
    for command in ["join", "feed"] {
        let mut process = Process::start(command, [command, &invite, "--identity", &file]);
        process.end();
        assert!(process.lines().iter().any(|line| line.contains(&key)), "{:?}", process.lines());
    }

    let policy = |keys: &str| Recipe { more: format!("[policy]\njoin = [\"{keys}\"]"), ..Recipe::exact() };
    let of_listed = policy(&key).write();
    let mut listed = Process::start("check", ["check", &of_listed.run_file()]);
    assert_eq!(listed.end(), 0, "{}", listed.errors());
    let secret = std::fs::read_to_string(&file).unwrap();
    expect_bad_run_file(&policy(secret.trim()), &["`policy.join`", "secret", "swarmline key FILE"]);
}

#[test]
fn a_feeder_that_is_not_listed_is_refused_and_told_its_key() {
    let listed = Identity::from_seed([1; 32]).peer();
    let more = format!("[policy]\nfeed = [\"{listed}\"]");
    let folder: RunFolder = Recipe { more, ..Recipe::exact() }.write();
    let (_coordinator, invite) = start_coordinator(&folder, &[]);
    let key_file = folder.file("feeder.key");
    let key = Identity::load_or_create(&key_file).unwrap().peer().to_string();
    let arguments = ["feed", &invite, "--identity", key_file.to_str().unwrap()];
    expect_failure(&arguments, REFUSED, &["the coordinator refused", &key, "`feed`", "[policy]"]);
}

#[test]
fn an_invite_that_is_none_is_explained() {
    expect_failure(&["join", "127.0.0.1:7700"], USAGE, &["no '@'", "KEY@HOST:PORT"]);
    expect_failure(&["feed", "12@127.0.0.1:7700"], USAGE, &["64 hexadecimal digits"]);
}
