"""Model folders and other files: altered ones are named, a second process is refused, a full disk is a line."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from oasis_lib.config import MODEL_CONFIGS, CodeGANConfig, PixelCNNConfig, TransformerConfig, VQVAEConfig, as_dict
from oasis_lib.models import build, load
from oasis_lib.models.vqvae import CRISP
from oasis_lib.storage import (
    CONFIG,
    FORMAT,
    STATE,
    WEIGHTS,
    atomic,
    content_hash,
    disk_errors,
    fingerprint,
    kept_arrays,
    only_one,
    read_json,
    read_state,
    save_model,
    save_state,
    write_json,
)  # fmt: skip

TINY = {
    "vqvae": VQVAEConfig(codebook_size=8, code_dim=2, hidden=4, blocks=1),
    "pixelcnn": PixelCNNConfig(hidden=4, layers=2, code_dim=2),
    "transformer": TransformerConfig(width=8, layers=1, heads=2, code_dim=2),
    "codegan": CodeGANConfig(noise=4, hidden=8, code_dim=2),
}
SHAPE = {"grid": [4, 4], "codebook_size": 8, "slice_indices": 3, "cdrs": 2}
CASES = 5_000


def saved(folder: Path, kind: str = "vqvae") -> Path:
    """A model's folder; a VQ-VAE's with a crisp decoder."""
    torch.manual_seed(0)
    shape = {} if kind == "vqvae" else SHAPE
    model = build(kind, TINY[kind], **shape)
    save_model(folder, model.state_dict(), {"kind": kind, "model": as_dict(TINY[kind]), **shape})
    if kind == "vqvae":
        made = {"kind": "decoder", "model": as_dict(TINY[kind]), "vqvae": fingerprint(model)}
        save_model(folder / CRISP, model.decoder.state_dict(), made)
    return folder


def changed(folder: Path, **values) -> None:
    (folder / CONFIG).write_text(json.dumps(read_json(folder / CONFIG) | values))  # NaN included


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", TINY)
def test_a_model_of_an_earlier_version_without_a_hash_loads(kind, tmp_path):
    config = read_json(saved(tmp_path, kind) / CONFIG)
    write_json(
        tmp_path / CONFIG, {name: value for name, value in config.items() if name not in ("format", "weights", "hash")}
    )
    assert load(tmp_path).kind == kind


@pytest.mark.parametrize("inner", ["", CRISP])
def test_one_flipped_bit_in_the_weights_is_named(inner, tmp_path):
    path = saved(tmp_path) / inner / WEIGHTS
    load(tmp_path)
    flip(path, path.stat().st_size - 9)
    with pytest.raises(ValueError, match=f"{path} is damaged: its hash is not in config.json"):
        load(tmp_path)


def test_a_later_format_says_so(tmp_path):
    changed(saved(tmp_path), format=FORMAT + 1)
    with pytest.raises(ValueError, match="made by a later version of oasis_lib"):
        load(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"width": "8"}, "width='8' must be a whole number, not str"),
        ({"width": True}, "width=True must be a whole number, not bool"),
        ({"heads": 0}, "heads=0 must be from 1"),
        ({"dropout": float("nan")}, "dropout=nan must be from 0"),
        ({"layers": 10**6}, "layers=1000000 must be from 1"),
        ({"width": 16_000, "layers": 256}, "disagree: codes.own.weight is"),
        ({"depth": 3}, "no setting 'depth'"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_file(values, message, tmp_path):
    changed(saved(tmp_path, "transformer"), model=as_dict(TINY["transformer"]) | values)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_setting_is_named_and_sizes_are_compared_before_memory_is_taken(tmp_path):
    model = as_dict(TINY["transformer"])
    del model["heads"]
    changed(saved(tmp_path, "transformer"), model=model)
    with pytest.raises(ValueError, match="TransformerConfig needs 'heads'"):
        load(tmp_path)
    saved(tmp_path, "transformer")
    changed(tmp_path, grid=[1024, 1024], codebook_size=32_768)  # tables of 137 GB
    with pytest.raises(ValueError, match="disagree"):
        load(tmp_path)


def test_whoever_adds_a_setting_raises_the_format():
    """A file of this format must hold all settings: else those that were added load as their defaults, unsaid."""
    names = {kind: sorted(as_dict(MODEL_CONFIGS[kind]())) for kind in TINY}  # tests of baselines add kinds
    assert (FORMAT, content_hash(json.dumps(names, sort_keys=True))[:8]) == (4, "5862d6c0")


def test_killed_between_config_and_weights_the_folder_still_loads(tmp_path, monkeypatch):
    before = saved(tmp_path, "transformer") / WEIGHTS
    old, model = before.read_bytes(), load(tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_model(tmp_path, model.state_dict(), read_json(tmp_path / CONFIG))
    assert before.read_bytes() != old
    before.write_bytes(old)  # as if the second rename had not happened
    load(tmp_path)


def value(draw: random.Random):
    return draw.choice([None, "", "x", -1, 0, 1, 2, 3, 7, 10**9, 10**30, 0.5, -0.5, 1e300, float("nan"), True, [], [1], [4, 5],
                        [10**5, 10**5], ["a", 4], {}, {"a": 1}, "vqvae", "codegan", "2"])  # fmt: skip


def mutate(folder: Path, draw: random.Random) -> None:
    """One thing at random: a setting, bytes of the JSON, of the header or of the weights, a file's end."""
    inner = folder / CRISP if (folder / CRISP).is_dir() and draw.random() < 0.3 else folder
    what = draw.randrange(6)
    if what < 3:
        config = read_json(inner / CONFIG)
        within = config["model"] if draw.random() < 0.6 else config
        name = draw.choice([*within, "another"])
        if what == 0:
            within.pop(name, None)
        else:
            within[name] = value(draw)
        (inner / CONFIG).write_text(json.dumps(config if draw.random() < 0.95 else value(draw)))
        return
    path = inner / (CONFIG if what == 3 else WEIGHTS)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    end = len(data) if what != 4 else min(header, len(data))
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    else:
        for _ in range(draw.choice([1, 1, 3])):
            data[draw.randrange(end)] = draw.randrange(256)
    path.write_bytes(data)


@pytest.mark.slow
def test_whatever_is_done_to_a_model_folder_it_loads_or_is_named(tmp_path):
    whole = {kind: saved(tmp_path / kind, kind) for kind in TINY}
    good = {kind: {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} for kind, folder in whole.items()}
    draw, outcomes, begun = random.Random(0), {"loaded": 0, "refused": 0}, time.process_time()
    for case in range(CASES):
        kind = draw.choice(list(TINY))
        mutate(whole[kind], draw)
        try:
            load(whole[kind])
            outcomes["loaded"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(whole[kind]) in str(error), f"case {case}: {error}"
            outcomes["refused"] += 1
        for file, data in good[kind].items():
            if file.stat().st_size != len(data) or file.read_bytes() != data:
                file.write_bytes(data)
    assert outcomes["refused"] > 0.8 * CASES and outcomes["loaded"] > 0, outcomes
    assert time.process_time() - begun < 120
    print(outcomes, f"{time.process_time() - begun:.0f} s")


def test_a_damaged_training_state_is_named(tmp_path):
    save_state(tmp_path, {"step": 3, "model": {"w": torch.arange(1000.0)}})
    assert read_state(tmp_path)["step"] == 3
    whole = (tmp_path / STATE).read_bytes()
    for data in (whole[:-100], whole[:50], b"", whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        (tmp_path / STATE).write_bytes(data)
        with pytest.raises(ValueError, match=f"{tmp_path / STATE} is damaged .*delete it"):
            read_state(tmp_path)


def test_json_holds_null_for_what_could_not_be_measured(tmp_path):
    write_json(
        tmp_path / "a.json", {"a": np.float32("nan"), 2: (np.arange(2), Path("b")), "c": [float("inf"), 1.5, True]}
    )
    assert read_json(tmp_path / "a.json") == {"a": None, "2": [[0, 1], "b"], "c": [None, 1.5, True]}


def test_an_altered_cache_is_made_anew_and_says_so(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"": np.arange(10), "more": np.eye(2)}

    for _ in range(2):
        found = kept_arrays(tmp_path, "train", {"cohort": "a"}, make)
        assert found["more"].tolist() == np.eye(2).tolist() and len(made) == 1
    flip(tmp_path / "train.npy", -3)
    with pytest.warns(UserWarning, match="train.npy was altered; its arrays are made anew"):
        assert kept_arrays(tmp_path, "train", {"cohort": "a"}, make)[""].tolist() == list(range(10))
    kept_arrays(tmp_path, "train", {"cohort": "b"}, make)
    assert len(made) == 3


HOLD = "import sys, time; from pathlib import Path; from oasis_lib.storage import only_one\n"
HOLD += "with only_one(Path(sys.argv[1]), 'training here'): print('held', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_and_a_dead_ones_lock_taken_over(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        with (
            pytest.raises(ValueError, match=f"process {first.pid} on .* is training"),
            only_one(tmp_path / ".lock", "training here"),
        ):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with only_one(tmp_path / ".lock", "training here"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_full_disk_is_said_in_a_line_and_what_was_there_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ValueError, match=f"{tmp_path}: the disk is full; make room"), disk_errors(tmp_path):
        with atomic(path) as beside:
            beside.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_state_that_finds_no_room_is_a_line_and_the_one_before_stays(tmp_path):
    """Found on a disk of 50 MB: torch answered with an error of its own. A limit on files is a full disk in little."""
    save_state(tmp_path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ValueError, match=f"{tmp_path}: the disk is full; make room"), disk_errors(tmp_path):
            save_state(tmp_path, {"step": 2, "model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_state(tmp_path)["step"] == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mine", [VQVAEConfig, TransformerConfig])
def test_settings_are_looked_at_wherever_they_come_from(mine):
    name = "codebook_size" if mine is VQVAEConfig else "layers"
    with pytest.raises(ValueError, match=f"{name}=-1 must be from"):
        mine(**{name: -1})


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.full((1, 1, 16, 16), 255.0), "must lie in .0, 1., not 255"),
        (torch.full((1, 1, 16, 16), float("nan")), "must lie in .0, 1., not nan"),
        (torch.zeros(1, 3, 16, 16), "must be .B, 1, H, W., not .1, 3, 16, 16"),
        (torch.zeros(1, 1, 16, 15), "of .16, 15. pixels"),
        (torch.zeros(0, 1, 16, 16), "the batch is empty"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "floats in .0, 1., not torch.uint8"),
    ],
)
def test_encode_quotes_what_is_wrong_with_images(images, message):
    with pytest.raises(ValueError, match=message):
        build("vqvae", TINY["vqvae"]).encode(images)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.full((1, 4, 4), 8), "must lie in 0 .. 7, not 8 .. 8"),
        (torch.full((1, 4, 4), -1), "must lie in 0 .. 7, not -1 .. -1"),
        (torch.zeros(1, 4, 4), "whole numbers.*not torch.float32"),
        (torch.zeros(0, 4, 4, dtype=torch.int64), "empty|not torch.int64 .0, 4, 4."),
        (torch.zeros(4, 4, dtype=torch.int64), "must be .*not .*.4, 4."),
    ],
)
def test_decode_and_nll_quote_what_is_wrong_with_tokens(tokens, message):
    for ask in (build("vqvae", TINY["vqvae"]).decode, build("transformer", TINY["transformer"], **SHAPE).nll):
        with pytest.raises(ValueError, match=message):
            ask(tokens)


@pytest.mark.parametrize(
    "slice_index, message", [(3, "slice_index=3 must be 0 .. 2"), (1.5, "slice_index must be whole numbers")]
)
@pytest.mark.parametrize("kind", ["pixelcnn", "transformer", "codegan"])
def test_sample_names_a_slice_index_that_does_not_exist(kind, slice_index, message):
    with pytest.raises(ValueError, match=message):
        build(kind, TINY[kind], **SHAPE).sample(1, slice_index=slice_index)
