"""What identifies a model directory, without reading gigabytes of it."""

import hashlib
import os

from remix_jax.models.hf_config import CONFIG, existing_directory
from remix_jax.models.hf_tokenizer import TOKENIZER_FILES

_END_BYTES = 2**20  # read from each end of a weight file


def model_digest(directory: str | os.PathLike) -> str:
    """Sixteen hex digits that tell two models apart.

    Of config and tokenizer files whole; of weight files the size and both ends.

    Training moves every tensor, so the ends tell two checkpoints apart without reading gigabytes.
    """
    root, digest = existing_directory(directory), hashlib.sha256()
    for path in sorted(root.iterdir()):
        if path.name in (CONFIG, *TOKENIZER_FILES):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(size - _END_BYTES, 0))
                digest.update(file.read(_END_BYTES))
    return digest.hexdigest()[:16]
