"""Files: one content hash, one cache of arrays, atomic writes, one lock, model folders. Loading executes nothing.

A model folder holds `config.json` and `model.safetensors`; while it is trained also `training.pt`, for an exact resume.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where they are used: `oasis --help` needs neither
    import numpy as np
    import torch

    Arrays, Tensors = dict[str, np.ndarray], dict[str, torch.Tensor]

WEIGHTS, CONFIG, STATE = "model.safetensors", "config.json", "training.pt"
# Of config.json. 1 had no hash of the weights, 3 none of its settings.
# Whoever adds a setting to a model adds 1: a file of this format has all of them.
FORMAT = 4
PATIENCE = 3.0  # seconds for a lock: the kernels of a study that was killed end within two


def main_process() -> bool:
    """Of several processes that train together, as torchrun and Accelerate start them, the first alone writes."""
    return int(os.environ.get("RANK", "0")) == 0


def content_hash(*parts: str | bytes | Path | np.ndarray) -> str:
    """SHA-256 of texts, bytes, arrays, and of files by their path: 64 digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: total)
        elif isinstance(part, str):
            total.update(part.encode())
        else:
            total.update(part if isinstance(part, bytes) else part.tobytes())
    return total.hexdigest()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write to the path given back. Once the block ended well, it is flushed to the disk and takes the real name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def only_one(lock: Path, doing: str) -> Iterator[None]:
    """Hold the file `lock`, which names this process. A second one is refused; the lock of a dead one is taken over.

    A record lock of the system: it ends with its process, however that ends, and forked workers do not hold it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+") as file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                    yield
                    return
                if time.monotonic() > until:
                    file.seek(0)
                    held = f"{lock.parent}: process {file.read()} is {doing}"
                    raise ValueError(f"{held}; wait for it, or end it first") from error
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # not removed: another process may have it open by now


@contextmanager
def disk_errors(folder: Path, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """A full disk or a missing permission as one line that says what to do."""
    try:
        yield
    except PermissionError as error:
        path = error.filename or folder
        raise kind(f"{path}: no permission to write here; choose another folder") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise kind(f"{folder}: the disk is full; make room, and the same command goes on where it was") from error


def write_json(path: str | Path, value: object) -> None:
    with atomic(path) as beside:
        beside.write_text(json.dumps(plain(value), indent=2) + "\n")


def plain(value: Any) -> Any:
    """As JSON knows it: arrays as lists, paths as text, and null for what is not finite."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path, missing: Any = None) -> Any:
    """What a file holds; `missing`, where one is given, if there is no file."""
    path = Path(path)
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and make it again") from error


def kept_arrays(folder: Path | None, name: str, key: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of this key from `folder`, or made and kept there.

    `NAME-PART.npy` holds one array (NAME.npy the part ""), `NAME.json` the key and the arrays' content hashes.
    """
    import numpy as np

    if folder is None:
        return make()
    index, key = folder / f"{name}.json", plain(key)

    def path(part: str) -> Path:
        return folder / f"{name}{part and '-'}{part}.npy"

    try:
        kept = read_json(index, {})
        if kept.get("key") == key:
            if altered := [path(part) for part, hashed in kept["arrays"].items() if content_hash(path(part)) != hashed]:
                raise ValueError(f"{altered[0]} was altered")
            return {part: np.load(path(part)) for part in kept["arrays"]}
    except (ValueError, KeyError, TypeError, OSError) as error:
        warnings.warn(f"{index}: {error}; its arrays are made anew", stacklevel=2)
    found, hashes = make(), {}
    if not main_process():
        return found
    with suppress(OSError):  # another's folder, or a full disk: made each time
        index.unlink(missing_ok=True)
        for part, array in found.items():
            with atomic(path(part)) as beside:
                with beside.open("wb") as file:
                    np.save(file, array)
                hashes[part] = content_hash(beside)
        write_json(index, {"key": key, "arrays": hashes})
    return found


def save_model(folder: str | Path, state: Tensors, config: dict[str, Any]) -> None:
    """`config` holds `kind` and `model` (what rebuilds it), and whatever else is worth knowing of its making.

    It also takes the hash of the weights, and of those it replaces: killed between the two files, the folder is whole.
    """
    from safetensors.torch import save

    folder, config = Path(folder), plain(config)
    data = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    before = [content_hash(folder / WEIGHTS)] if (folder / WEIGHTS).is_file() else []
    config |= {"format": FORMAT, "weights": [content_hash(data), *before]}
    write_json(folder / CONFIG, config | {"hash": config_hash(config)})
    with atomic(folder / WEIGHTS) as beside:
        beside.write_bytes(data)


def config_hash(config: dict[str, Any]) -> str:
    """Of all that a config.json says, but for the weights, which have hashes of their own."""
    return content_hash(json.dumps({k: v for k, v in config.items() if k not in ("weights", "hash")}, sort_keys=True))


def read_config(folder: str | Path) -> dict[str, Any]:
    """What `config.json` says, after a look at its format."""
    path = Path(folder) / CONFIG
    for name in (CONFIG, WEIGHTS):
        if not path.with_name(name).is_file():
            raise FileNotFoundError(f"{folder} is not a model folder: it has no {name}; train the model first")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, not {str(config)[:40]!r}")
    written = config.get("format", 1)
    if type(written) is not int or written < 1:
        raise ValueError(f"{path}: format={str(written)[:40]!r} must be a whole number from 1 to {FORMAT}")
    if written > FORMAT:
        raise ValueError(f"{path} was made by a later version of oasis_lib (format {written} of {FORMAT}); update it")
    since = {"kind": (1, str), "model": (1, dict), "weights": (2, list), "hash": (4, str)}
    for name, (first, kind) in since.items():
        if written >= first and not isinstance(config.get(name), kind):
            raise ValueError(f"{path}: {name} must be a {kind.__name__}, not {str(config.get(name))[:40]!r}")
    return config


def read_weights(folder: str | Path, config: dict[str, Any], wanted: Tensors) -> Tensors:
    """The tensors of a model folder, if they are those that `config` speaks of.

    `wanted` may be on the meta device: names and shapes are compared with the file's header before memory is taken.
    """
    from safetensors import SafetensorError, safe_open

    path, state = Path(folder) / WEIGHTS, {}
    differs = f"{path} and {CONFIG} disagree"
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            for name in sorted(shapes.keys() | wanted.keys()):
                asked = tuple(wanted[name].shape) if name in wanted else "nothing"
                if shapes.get(name, "nothing") != asked:
                    raise ValueError(f"{differs}: {name} is {shapes.get(name, 'nothing')}, not {asked}")
            if config.get("format", 1) > 1 and content_hash(path) not in config["weights"]:
                raise ValueError(f"{path} is damaged: its hash is not in {CONFIG}; restore it, or train again")
            if config.get("format", 1) > 3 and config["hash"] != config_hash(config):
                raise ValueError(f"{path.with_name(CONFIG)} was altered: it no longer has its hash; restore it")
            for name in shapes:
                value, kind = file.get_tensor(name), wanted[name].dtype
                if value.dtype != kind and not (value.is_floating_point() and kind.is_floating_point):
                    raise ValueError(f"{differs}: {name} is {value.dtype}, not {kind}")
                state[name] = value.to(kind)  # weights may be kept in half precision
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or delete it and train again") from error
    return state


def fingerprint(model: torch.nn.Module) -> str:
    """What tells these weights from any others; a crisp decoder, which changes no token, is left out."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    named = (part for name, value in state.items() if not name.startswith("crisp.") for part in (name, value.numpy()))
    return content_hash(*named)[:16]


def save_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Everything that an exact resume needs: tensors and plain values only."""
    import torch

    data = io.BytesIO()  # on a full disk torch's own writing ends in an error that says nothing of it
    torch.save(state, data)
    with atomic(Path(folder) / STATE) as beside:
        beside.write_bytes(data.getbuffer())


def read_state(folder: str | Path) -> dict[str, Any] | None:
    """The file is a zip archive, whose checksums tell a truncated or altered one."""
    import torch

    path = Path(folder) / STATE
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if altered := archive.testzip():
                raise ValueError(f"{altered} has another checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one error for a file that it can't read
        found = f"{path} is damaged ({str(error).splitlines()[0][:80]})"
        raise ValueError(f"{found}; delete it, and the same command trains from the start") from error
