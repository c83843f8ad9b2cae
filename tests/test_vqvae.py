"""The codebook's arithmetic, and what encoder and decoder promise."""

import itertools

import pytest
import torch

from oasis_lib import models
from oasis_lib.config import VQVAEConfig, as_dict
from oasis_lib.models import VQVAE, ResidualBlock, VectorQuantizer, perplexity
from oasis_lib.models.quantizer import flatten
from oasis_lib.storage import save_model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(**options):
    return VQVAEConfig(**({"codebook_size": 16, "code_dim": 4, "hidden": 16, "blocks": 1} | options))


def test_nearest_code_equals_brute_force():
    quantizer = VectorQuantizer(small(codebook_size=50))
    quantizer.codebook.normal_()
    vectors = torch.randn(1000, 4)
    assert torch.equal(quantizer.nearest(vectors), torch.cdist(vectors.double(), quantizer.codebook.double()).argmin(1))


def test_ema_update_equals_a_computation_by_hand():
    quantizer = VectorQuantizer(small(codebook_size=2, code_dim=1, decay=0.9, dead_code_threshold=0.0))
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.counts.copy_(torch.tensor([1.0, 1.0]))
    quantizer.sums.copy_(torch.tensor([[0.0], [10.0]]))
    latents = torch.tensor([1.0, 2.0, 9.0]).view(1, 1, 1, 3)
    quantizer.update(latents, quantizer(latents)[1])
    assert quantizer.counts.tolist() == pytest.approx([0.9 + 0.2, 0.9 + 0.1])
    assert quantizer.codebook.flatten().tolist() == pytest.approx(
        [(0.0 * 0.9 + 0.1 * 3) / 1.1, (10 * 0.9 + 0.1 * 9) / 1.0]
    )


def test_an_entry_that_nothing_chose_keeps_its_place():
    quantizer = VectorQuantizer(small(dead_code_threshold=0.0))
    quantizer.start(torch.randn(4, 4, 8, 8))
    before = quantizer.codebook.clone()
    latents = before[3].view(1, 4, 1, 1).expand(1, 4, 6, 6)
    for _ in range(50):
        quantizer.update(latents, quantizer(latents)[1])
    others = torch.arange(16) != 3
    assert torch.allclose(quantizer.codebook[others], before[others], atol=1e-5)


def test_revival_resets_all_three_buffers_together():
    quantizer = VectorQuantizer(small(dead_code_threshold=0.05))
    quantizer.codebook.normal_()
    quantizer.codebook[5] = 1e6  # nothing will ever choose it
    quantizer.counts.fill_(1.0)
    quantizer.counts[5] = 1e-6
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    latents = torch.randn(2, 4, 8, 8)
    quantizer.update(latents, quantizer(latents)[1])
    revived = quantizer.codebook[5]
    assert (torch.cdist(revived[None], flatten(latents)) < 1e-5).any(), "it sits on a live vector"
    assert quantizer.counts[5] > 0.5 and torch.allclose(quantizer.sums[5], revived * quantizer.counts[5])


def test_the_gradient_passes_the_quantizer_and_commitment_binds():
    quantizer = VectorQuantizer(small())
    quantizer.codebook.normal_()
    latents = torch.randn(1, 4, 3, 3, requires_grad=True)
    quantized, _, commitment = quantizer(latents)
    quantized.sum().backward(retain_graph=True)
    assert torch.equal(latents.grad, torch.ones_like(latents))
    latents.grad = None
    commitment.backward()
    expected = 0.25 * 2 * (latents - quantized) / latents.numel()
    assert torch.allclose(latents.grad, expected.detach(), atol=1e-6)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_codebook_moves_in_training_and_never_by_encoding(codebook):
    vqvae = VQVAE(small(codebook=codebook))
    images = torch.rand(4, 1, 32, 32)
    before = vqvae.quantizer.codebook.detach().clone()
    for mode in (vqvae.train(), vqvae.eval()):
        mode.encode(images)
        mode(images)
        assert torch.equal(vqvae.quantizer.codebook, before)
    out = vqvae.train()(images)
    (out.images.mean() + out.commitment).backward()
    if codebook == "ema":
        vqvae.quantizer.update(out.latents, out.codes)
        assert not torch.equal(vqvae.quantizer.codebook, before)
    else:
        assert vqvae.quantizer.codebook.grad.abs().sum() > 0


@pytest.mark.parametrize("factor, channels", [*itertools.product((4, 8, 16), (1, 3))])
def test_encode_then_decode_equals_forward_exactly(factor, channels):
    vqvae = VQVAE(small(factor=factor, channels=channels)).eval()
    vqvae.quantizer.codebook.normal_()
    images = torch.rand(2, channels, 64, 32)  # not square
    codes = vqvae.encode(images)
    assert codes.shape == (2, 64 // factor, 32 // factor) and codes.dtype == torch.int64
    out = vqvae(images)
    assert torch.equal(out.codes, codes) and torch.equal(vqvae.decode(codes), out.images)
    assert 0 <= out.images.min() and out.images.max() <= 1


def test_residual_blocks_share_no_weights():
    vqvae = VQVAE(small(blocks=3))
    blocks = [m for m in vqvae.encoder.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 3 and len({p.data_ptr() for b in blocks for p in b.parameters()}) == sum(
        1 for b in blocks for _ in b.parameters()
    )


@pytest.mark.parametrize("counts, wanted", [([5, 5, 5, 5], 4.0), ([7, 0, 0], 1.0), ([3, 1], 4 / 3**0.75)])
def test_perplexity_of_known_histograms(counts, wanted):
    assert perplexity(torch.tensor(counts)) == pytest.approx(wanted)


def test_saving_and_loading_gives_the_same_model_and_codes_above_255_survive(tmp_path):
    vqvae = VQVAE(small(codebook_size=600)).eval()
    vqvae.quantizer.codebook.normal_()
    save_model(tmp_path, vqvae.state_dict(), {"kind": "vqvae", "model": as_dict(vqvae.config)})
    again = models.load(tmp_path)
    codes = torch.arange(600).view(1, 20, 30)
    assert torch.equal(again.decode(codes), vqvae.decode(codes))
    assert not again.training and again.config == vqvae.config


def test_bad_input_is_named():
    vqvae = VQVAE(small())
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        vqvae.encode(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(30, 32\)"):
        vqvae.encode(torch.zeros(1, 1, 30, 32))
    with pytest.raises(ValueError, match="0 .. 15"):
        vqvae.decode(torch.full((1, 8, 8), 16))
    with pytest.raises(ValueError, match="did you mean 'vqvae'"):
        models.build("vqvea", {})
