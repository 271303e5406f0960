#!/usr/bin/env python3
"""Holds exported folders against transformers: loss on held-out text and greedy text must be those of swarmline.

    python3 -m venv VENV && VENV/bin/pip install blake3 torch transformers
    VENV/bin/python tests/export/compare_transformers.py SWARMLINE [WORK_FOLDER]

SWARMLINE is the binary. The script trains a small run for each boundary on the sources of this repository, exports it,
and compares. It exits with 1 if a loss differs by more than 1e-3 or a greedy token by anything.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import blake3
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTEXT = 64
SEQUENCES = 8
MICROBATCHES = 8
PROMPTS = ["fn main() {", "/// The ", "use std::"]
TOKENS = 40
LOSS_TOLERANCE = 1e-3
RUN = """
[model]
hidden_size = 64
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = {context}
[pipeline]
stages = 4
[boundary]
kind = "{kind}"
packing = "{packing}"
[optimizer]
steps = 200
[data]
paths = ["text.rs"]
heldout_microbatches = {microbatches}
[batch]
sequences = {sequences}
"""


def swarmline(binary, *arguments):
    """Runs a command with --json and returns its events."""
    command = [binary, *map(str, arguments), "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def trained(binary, folder, kind, packing):
    """Trains and exports a run; returns the report of the export."""
    sources = sorted((ROOT / "runtime/src").rglob("*.rs"))
    (folder / "text.rs").write_text("".join(path.read_text() for path in sources))
    run = folder / "run.toml"
    sizes = {"context": CONTEXT, "sequences": SEQUENCES, "microbatches": MICROBATCHES}
    run.write_text(RUN.format(kind=kind, packing=packing, **sizes))
    swarmline(binary, "train", "--run", run, "--save", folder / "saved")
    return swarmline(binary, "export", folder / "saved", "--run", run, "--to", folder / "model")[-1]


def held_out(folder):
    """The end of the text, which a run of a single file holds out: 0.05 of it, as an f32."""
    text = (folder / "text.rs").read_bytes()
    return text[len(text) - int(len(text) * float(torch.tensor(0.05))):]


def draws(text):
    """The ids of all held-out microbatches, `[sequences, CONTEXT + 1]`, as `runtime/src/data/batches.rs` draws them."""
    key = blake3.blake3(bytes(8), derive_key_context="swarmline 2026 held-out draws").digest()
    rows = []
    for index in range(MICROBATCHES):
        random = blake3.blake3(index.to_bytes(8, "little"), key=key).digest(length=8 * SEQUENCES)
        for row in range(SEQUENCES):
            draw = int.from_bytes(random[8 * row: 8 * row + 8], "little")
            start = draw * (len(text) - CONTEXT) >> 64
            rows.append(list(text[start: start + CONTEXT + 1]))
    return torch.tensor(rows)


@torch.no_grad()
def loss(model, ids):
    """Mean cross-entropy, nats a token."""
    logits = model(ids[:, :-1]).logits.double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def compare_text(binary, folder, model, tokenizer):
    """Number of prompts whose greedy text differs."""
    different = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        tokens = min(TOKENS, CONTEXT - ids.shape[1])
        theirs = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1]:].tolist()
        ours = swarmline(binary, "generate", folder / "model", prompt, "--tokens", tokens)[-1]
        same = theirs == ours["ids"] and tokenizer.decode(theirs) == ours["text"]
        different += not same
        print(f"  {prompt!r}: {'same' if same else 'DIFFERENT'} {tokens} greedy tokens: {ours['text'][:40]!r}")
    return different


def compare(binary, folder, kind, packing):
    """Number of differences for one boundary."""
    report = trained(binary, folder, kind, packing)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    text = held_out(folder).decode(errors="ignore")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    assert ids.tolist() == list(text.encode()), "each byte is its own token"
    assert tokenizer.decode(ids) == text, "the text comes back"
    theirs = loss(model, draws(held_out(folder)))
    distance = abs(theirs - report["loss"])
    print(f"{kind}, {packing}: {type(model).__name__}, {report['parameters']} parameters")
    print(f"  held-out loss: run {report['loss_of_run']:.6f}, swarmline {report['loss']:.6f}, "
          f"transformers {theirs:.6f}, difference {distance:.1e}")
    return (distance > LOSS_TOLERANCE) + compare_text(binary, folder, model, tokenizer)


def main():
    binary = sys.argv[1]
    parent = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    differences = 0
    for kind, packing in [("identity", "f32"), ("subspace", "f32"), ("subspace", "q8"), ("none", "f32")]:
        folder = parent / f"{kind}-{packing}"
        folder.mkdir(parents=True)
        differences += compare(binary, folder, kind, packing)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
