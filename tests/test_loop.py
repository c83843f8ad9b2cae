"""The loop: it learns, it resumes exactly, it stops at nonsense, and two processes are one."""

import errno
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from oasis_lib.cards import write_cards
from oasis_lib.cohort import Cohort, Split
from oasis_lib.config import Part, TrainingConfig, VQVAEConfig
from oasis_lib.metrics import ssim
from oasis_lib.models import load
from oasis_lib.training import Batches, encode_cohort, loop, to_images, train_vqvae
from oasis_lib.training.data import content_box, ends, vary
from oasis_lib.training.data import mirrored as mirror

MODEL = VQVAEConfig(codebook_size=32, code_dim=4, hidden=16, blocks=1, autoencoder_steps=5)
TRAINING = TrainingConfig(steps=12, batch=8, precision="no", validate_every=4)
VARIED = replace(TRAINING, shift=1)


def made_cohort(folder, subjects=6, slices=4, size=32, grain=0) -> Cohort:
    """Discs of several sizes, in a cohort that lives in memory."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    splits = {}
    for name in ("train", "validate", "test"):
        radius = rng.uniform(6, 11, (subjects * slices, 1, 1))
        images = (np.hypot(x, y) < radius) * (150 + 60 * np.sin(x / rng.uniform(1, 3, radius.shape)))
        images = images + rng.uniform(0, grain, images.shape)
        subject = np.repeat([f"{name}-{i}" for i in range(subjects)], slices)
        table = pd.DataFrame({"subject": subject, "slice_index": np.tile(np.arange(slices), subjects), "cdr": 0.0})
        splits[name] = Split(name, images.astype(np.uint8), table)
    info = {
        "hash": "made",
        "size": size,
        "slice_indices": slices,
        "cdrs": [0.0],
        "synthetic": True,
        "left_right": "columns",
    }
    return Cohort(folder, info, splits)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_that_is_stopped_ends_with_the_same_weights_and_history(tmp_path, monkeypatch):
    cohort = made_cohort(tmp_path)
    whole = train_vqvae(cohort, tmp_path / "whole", Part(MODEL, VARIED), progress=False)

    monkeypatch.setattr(loop, "SAVE_EVERY", -1)  # at every validation
    validate, calls = loop.save_state, []

    def killed(*arguments):
        validate(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train_vqvae(cohort, tmp_path / "broken", Part(MODEL, VARIED), progress=False)
    assert json.loads((tmp_path / "broken/request.json").read_text())["finished"] is False
    assert_alike(whole, train_vqvae(cohort, tmp_path / "broken", Part(MODEL, VARIED), progress=False), tmp_path)


def assert_alike(whole, broken, folder):
    timing = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(whole.drop(columns=timing), broken.drop(columns=timing))
    a, b = weights(folder / "whole"), weights(folder / "broken")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_signal_stops_after_the_step_and_nothing_is_lost(tmp_path, monkeypatch):
    cohort, real, handler = made_cohort(tmp_path), Batches.batch, signal.getsignal(signal.SIGTERM)
    whole = train_vqvae(cohort, tmp_path / "whole", Part(MODEL, VARIED), progress=False)
    asked = {2: signal.SIGTERM, 5: signal.SIGINT, 9: signal.SIGUSR1}  # none of them a step of validation

    def interrupted(self, step):
        if step in asked:
            signal.raise_signal(asked.pop(step))
        return real(self, step)

    monkeypatch.setattr(Batches, "batch", interrupted)
    for step in (3, 6, 10):
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}; the same command goes on"):
            train_vqvae(cohort, tmp_path / "broken", Part(MODEL, VARIED), progress=False)
        assert signal.getsignal(signal.SIGTERM) == handler
    assert_alike(whole, train_vqvae(cohort, tmp_path / "broken", Part(MODEL, VARIED), progress=False), tmp_path)


def test_the_state_is_saved_between_validations_too(tmp_path, monkeypatch):
    """Found in a training whose validations lay minutes apart: a kill lost all since the last one."""
    saved, save = [], loop.save_state
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    monkeypatch.setattr(loop, "save_state", lambda out, state: (saved.append(state["step"]), save(out, state)))
    training = replace(VARIED, steps=50, validate_every=50)
    train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, training), progress=False)
    assert saved == [20, 40, 50]


def test_a_run_too_short_for_its_head_start_has_a_codebook_all_the_same(tmp_path):
    """Found on a slow machine, whose minute ended after half of the head start."""
    cohort = made_cohort(tmp_path)
    train_vqvae(cohort, tmp_path / "m", Part(replace(MODEL, autoencoder_steps=60), VARIED), progress=False)
    model = load(tmp_path / "m")
    assert model.quantizer.started and len(model.encode(to_images(cohort["test"].images)).unique()) > 4


def test_what_is_finished_is_not_trained_again_and_replaced_only_on_demand(tmp_path, monkeypatch):
    cohort = made_cohort(tmp_path)
    first = train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    monkeypatch.setattr("oasis_lib.training.once.fit", lambda *a, **k: pytest.fail("trained again"))
    again = train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    monkeypatch.undo()
    other, weights = Part(replace(MODEL, hidden=8), replace(VARIED, steps=8)), tmp_path / "m" / "model.safetensors"
    before = weights.read_bytes()
    for request in (tmp_path / "m" / "request.json").read_bytes(), b"{}":  # lost, config.json says it as well
        (tmp_path / "m" / "request.json").write_bytes(request)
        with pytest.raises(
            ValueError, match=r"m holds a model .* model.hidden 16, now 8; training.steps 12, now 8\. .*--overwrite"
        ):
            train_vqvae(cohort, tmp_path / "m", other, progress=False)
        assert weights.read_bytes() == before, "weights were lost"
    monkeypatch.setenv("OASIS_OVERWRITE", "1")
    assert train_vqvae(cohort, tmp_path / "m", other, progress=False)["step"].iloc[-1] == 8


def test_an_edit_of_the_library_is_told_and_retrains_only_on_demand(tmp_path, monkeypatch, capsys):
    cohort, weights = made_cohort(tmp_path), tmp_path / "m" / "model.safetensors"
    train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    stamp = weights.stat().st_mtime_ns
    monkeypatch.setattr("oasis_lib.training.once.library_digest", lambda: "another")
    train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED))
    assert "another version of the library" in capsys.readouterr().out and weights.stat().st_mtime_ns == stamp
    monkeypatch.setenv("OASIS_OVERWRITE", "1")
    train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    assert weights.stat().st_mtime_ns > stamp


def test_the_loop_overfits_ten_slices_and_its_codes_are_kept(tmp_path):
    cohort = made_cohort(tmp_path, subjects=5, slices=2)
    training = replace(TRAINING, steps=400, lr=4e-3, ema=0.9, flip=False, validate_every=400)
    train_vqvae(cohort, tmp_path / "m", Part(replace(MODEL, hidden=32, codebook_size=128), training), progress=False)
    vqvae = load(tmp_path / "m")
    images = to_images(cohort["train"].images)
    with torch.no_grad():
        assert ssim(images, vqvae(images).images).mean() > 0.93
    codes = encode_cohort(tmp_path / "m", cohort)
    assert codes["train"].shape == (10, 8, 8) and codes["train"].dtype == np.int16
    assert np.array_equal(codes["train"], vqvae.encode(images).numpy())
    assert len(np.unique(codes["train"])) > 20


def test_nan_stops_with_words_and_the_good_weights_stay(tmp_path, monkeypatch):
    from oasis_lib.training import vqvae

    real, cohort = vqvae.reconstruction_loss, made_cohort(tmp_path)
    seen = []

    def poisoned(*arguments):
        loss, logs = real(*arguments)
        seen.append(1)
        return (loss * float("nan") if len(seen) > 8 else loss), logs

    monkeypatch.setattr(vqvae, "reconstruction_loss", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"at step \d+, at a learning rate of .*kept in .*smaller learning rate"
    ):
        train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "m").values())


def test_a_second_training_of_one_folder_is_refused_and_a_killed_ones_rest_is_removed(tmp_path):
    cohort, folder = made_cohort(tmp_path), tmp_path / "m"
    folder.mkdir()
    (folder / ".model.safetensors.1.part").write_text("half")
    hold = "import sys, time; from pathlib import Path; from oasis_lib.storage import only_one\n"
    hold += "with only_one(Path(sys.argv[1]), 'training here'): print('held', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", hold, folder / ".lock"], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        with pytest.raises(ValueError, match=f"process {first.pid} on .* is training here"):
            train_vqvae(cohort, folder, Part(MODEL, VARIED), progress=False)
    finally:
        first.kill()
        first.communicate()
    train_vqvae(cohort, folder, Part(MODEL, replace(VARIED, steps=1)), progress=False)
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("tried 2 GiB"), "memory is full; lower batch .now 8."),
        (OSError(errno.ENOSPC, "No space left on device"), "m: the disk is full; make room, and the same command"),
    ],
)
def test_a_full_memory_or_disk_is_said_and_the_run_goes_on_later(error, message, tmp_path, monkeypatch):
    cohort, save = made_cohort(tmp_path), loop.save_model

    def full(*_):
        raise error

    monkeypatch.setattr(loop, "save_model", full)
    with pytest.raises(ValueError, match=message):
        train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    monkeypatch.setattr(loop, "save_model", save)
    assert train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)["step"].iloc[-1] == 12


def test_a_codebook_that_collapses_is_said_in_words_and_kept(tmp_path, monkeypatch):
    from oasis_lib.training import vqvae

    monkeypatch.setattr(vqvae, "MEANT", 0)
    monkeypatch.setattr(vqvae, "perplexity", lambda counts: 1.2)
    with pytest.warns(
        UserWarning,
        match="the codebook collapses: its use equals that of 1.2 of 32 tokens; raise vqvae.dead_code_threshold",
    ):
        train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, VARIED), progress=False)
    assert "step 12: the codebook collapses" in (tmp_path / "m" / loop.WARNINGS).read_text()


def test_the_best_weights_are_those_of_the_highest_score(tmp_path, monkeypatch):
    from oasis_lib.training.vqvae import VQVAETask

    scores = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(VQVAETask, "validate", lambda self, model: {"score": next(scores), "perplexity": 32.0})
    train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, VARIED), progress=False)
    kept = json.loads((tmp_path / "m/config.json").read_text())
    assert (kept["step"], kept["score"]) == (8, 0.9)


def test_training_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="set epochs, steps or minutes"):
        train_vqvae(made_cohort(tmp_path), tmp_path / "m", Part(MODEL, TrainingConfig()), progress=False)


def test_batches_cover_an_epoch_once_and_depend_on_the_step_alone(tmp_path):
    cohort = made_cohort(tmp_path)
    batches = Batches(cohort, VARIED, torch.device("cpu"))
    seen = torch.cat([batches.batch(step).rows for step in range(batches.steps_an_epoch)])
    assert sorted(seen.tolist()) == list(range(24))
    fresh = Batches(cohort, VARIED, torch.device("cpu"))
    assert torch.equal(fresh.batch(7).images, batches.batch(7).images)
    shares = [Batches(cohort, VARIED, torch.device("cpu"), rank, 2).batch(7) for rank in (0, 1)]
    assert torch.equal(torch.cat([s.images for s in shares]).sort(0).values, batches.batch(7).images.sort(0).values)


def test_streamed_batches_equal_those_held_in_memory(tmp_path, monkeypatch):
    cohort = made_cohort(tmp_path)
    held = Batches(cohort, VARIED, torch.device("cpu")).batch(3)
    monkeypatch.setattr("oasis_lib.training.data.card_memory", lambda device: (0, 0))
    assert torch.equal(Batches(cohort, VARIED, torch.device("cpu")).batch(3).images, held.images)


def test_variation_shifts_flips_and_scales_each_image_on_its_own():
    pixels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    pixels[:, 4, 2] = 100
    draws = torch.tensor([[0.0, 0.0, 0.0, 0.5], [0.99, 0.5, 0.9, 1.0]])  # (down, across, flip, brightness)
    out = vary(pixels, draws, TrainingConfig(shift=2, intensity=0.1), draws[:, 2] >= 0.5, 7)[:, 0]
    assert out[0].argmax() == 6 * 8 + 4 and out[0].max() == pytest.approx(100 / 255)
    assert out[1].argmax() == 2 * 8 + 5 and out[1].max() == pytest.approx(110 / 255)


def test_the_content_box_holds_all_that_is_lit():
    images = np.zeros((3, 64, 64), np.uint8)
    images[1, 20:41, 9:30] = 200
    rows, columns = content_box(images, margin=2)
    assert rows.start <= 18 and rows.stop >= 43 and (rows.stop - rows.start) % 16 == 0
    assert columns.start <= 7 and columns.stop >= 32 and (columns.stop - columns.start) % 16 == 0
    assert content_box(np.zeros((1, 64, 64), np.uint8), 2) == (slice(0, 64), slice(0, 64))


def test_cards_lie_beside_the_weights(tmp_path):
    cohort = made_cohort(tmp_path)
    train_vqvae(cohort, tmp_path / "m", Part(MODEL, VARIED), progress=False)
    card = (tmp_path / "m/README.md").read_text()
    assert card.startswith("---\nlibrary_name: oasis_lib") and "SYNTHETIC" in card and "| validate_ssim |" in card
    assert "Not for** clinical use" in card and "Hash `made`" in (tmp_path / "m/DATA.md").read_text()
    assert "snapshots.npz" not in card
    write_cards(tmp_path / "m", cohort.info | {"synthetic": False, "cdrs": [0.0, 0.5]})
    assert "CDR of training subjects: 0.0, 0.5." in (tmp_path / "m/DATA.md").read_text()
    assert "snapshots.npz` shows reconstructions of a few validation subjects" in (tmp_path / "m/README.md").read_text()


def test_a_mirror_leaves_heads_in_place():
    head = np.zeros((5, 8, 12), np.uint8)
    head[:, 2:6, 2:7] = [90, 60, 60, 60, 30]  # its middle is column 4 of twelve
    mirrored = vary(
        torch.from_numpy(head),
        torch.full((5, 4), 0.5),
        TrainingConfig(),
        torch.ones(5, dtype=torch.bool),
        ends(head),
    )
    assert ends(head) == 8
    np.testing.assert_allclose(mirrored[0, 0, 3].numpy() * 255, np.r_[0, 0, 30, 60, 60, 60, 90, np.zeros(5)], atol=1e-3)
    np.testing.assert_array_equal(mirror(head, head), (mirrored[:, 0].numpy() * 255).round())
    assert ends(np.zeros_like(head)) == 11, "nothing to be seen: amid the frame"
