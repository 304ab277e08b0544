"""Files, autoencoders and text encoders that many people have: how they are recognized."""

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.checkpoint.forms import Tensors, autoencoder
from minisd.checkpoint.names import PREFIXES
from minisd.checkpoint.numbers import DTYPES
from minisd.checkpoint.tensors import CheckpointError, StoredTensor

# SHA-256 of files that many people have, as their publishers state them.
KNOWN_FILES = {
    "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556": "CompVis's sd-v1-4.ckpt",
    "14749efc0ae8ef0329391ad4436feb781b402f4fece4883c7ad8d10556d8a36a": "sd-v1-4-full-ema.ckpt",
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": "v1-5-pruned-emaonly.ckpt",
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": "v1-5-pruned-emaonly",
    "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053": "v1-5-pruned.ckpt",
    "c6bbc15e3224e6973459ba78de4998b80b50112b0ae5b5c67113d56b4e366b19": "sd-v1-5-inpainting.ckpt",
    "c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab": "vae-ft-mse-840000",
    "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": "vae-ft-mse-840000",
    "0b204ad0cae549e0a7e298d803d57e36363760dec71c63109c1da3e1147ec520": "vae-ft-ema-560000",
    "95f26a5ab04779d5467d1fcecaf93160ffa523afe399b835b3e1bb77ff2d937a": "vae-ft-ema-560000",
}
# Fingerprints by which model-toolkit tells whose autoencoder or text encoder a file has: the sum of
# sigmoid(w) - 1/2 over its weights in float16, compared with SD 1.x's own.
FINGERPRINTS = {
    "vae": (17870.7051, 1e4, {0: "SD 1.x's", 869: "SD 2.x's", 2982: "NovelAI's",
                              155: "Waifu Diffusion 1.4's (1)", 41: "Waifu Diffusion 1.4's (2)"}),
    "text_encoder": (-2097.8596, 1e6, {0: "SD 1.x's"}),
}  # fmt: skip


def owner_of(part: str, tensors: Tensors, read: Callable[[str, StoredTensor], Tensor]) -> str:
    """Whose autoencoder ("vae") or text encoder ("text_encoder") this is; empty if not known.

    tensors: of the whole file. read: gives a tensor's numbers, by its name in a checkpoint.
    """
    prefix = PREFIXES[part]
    if part == "vae":
        try:
            chosen = {prefix + name: tensor for name, tensor in autoencoder(tensors).items()}
        except CheckpointError:  # it has none
            return ""
        starts = (f"{prefix}encoder", f"{prefix}decoder")
        chosen = {name: t for name, t in chosen.items() if name.startswith(starts)}
    else:
        chosen = {n: t for n, t in tensors.items() if n.startswith(prefix) and ".mlp." in n}
    total = 0.0
    for name, tensor in chosen.items():
        if tensor.dtype in DTYPES and 0 not in tensor.shape:
            values = read(name, tensor).half().float()
            total += (torch.sigmoid(values) - 0.5).sum(dtype=torch.float64).item()
    base, scale, owners = FINGERPRINTS[part]
    distance = abs(total / base - 1) * scale
    return next((owners[n] for n in owners if n - 1 < distance < n + 2), "")
