"""Training: one loop, and what each model has to say to it."""

from oasis_lib.device import best_device
from oasis_lib.training.codes import codes_of, decode_codes, encode_cohort, encode_images
from oasis_lib.training.data import Batches, even_slice_indices, to_images
from oasis_lib.training.loop import Task, fit
from oasis_lib.training.vqvae import train_vqvae

__all__ = [
    "Batches",
    "Task",
    "best_device",
    "codes_of",
    "decode_codes",
    "encode_cohort",
    "encode_images",
    "even_slice_indices",
    "fit",
    "to_images",
    "train_prior",
    "train_vqvae",
]


def __getattr__(name: str):
    if name == "train_prior":
        from oasis_lib.training.prior import train_prior

        return train_prior
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
