"""How large the models are, and how long they are trained: one profile for each kind of machine."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from minisd.text_encoder import TextEncoder
from minisd.unet import Row, Table, UNet
from minisd.vae import VAE

STAGES = ("autoencoder", "decoder", "words", "diffusion")


@dataclass(frozen=True)
class Stage:
    batch: int
    lr: float
    minutes: float
    steps: int | None = None  # None: as many as fit into the minutes
    warmup: int = 200  # steps
    average: float = 0.999  # of the weights' running average, which is what is exported


@dataclass(frozen=True)
class Profile:
    name: str
    size: int  # pixels a side
    vae: tuple[int, ...]  # channels of its levels; a level more halves the latent's side
    unet: tuple[int, ...]  # channels of its levels
    attention: tuple[int, ...]  # levels with transformers, 0 at the latent's full size
    text: tuple[int, int]  # width, layers
    autoencoder: Stage
    decoder: Stage
    words: Stage
    diffusion: Stage
    variants: int  # pictures made of each emoji picture, for the cache of latents
    heads: int = 4
    captions: int = 4  # for each variant
    concepts: str | None = None  # file of the labels that are learned as words; None: all
    channels_last: bool = False

    def facts(self, stage: str) -> dict[str, Any]:
        """What must agree for a stopped stage to go on: all that bears on it but the minutes."""
        facts = asdict(self)
        stages = {name: facts.pop(name) for name in STAGES}
        del stages[stage]["minutes"]
        if stage in ("autoencoder", "decoder"):
            facts = {name: facts[name] for name in ("name", "size", "vae")}
        return facts | {stage: stages[stage]}


# Groups of 32 in every GroupNorm: all widths are multiples of 32. gpu and cpu stay below 40 MB in
# float16, a quarter of which is the embedding of CLIP's 49,408 tokens, most of them never seen.
PROFILES = {
    # 19.9 M parameters. For one large GPU and half an hour, of which 2 minutes to start and export.
    "gpu": Profile(
        "gpu",
        size=128,
        vae=(32, 64, 96),
        unet=(96, 160, 192),
        attention=(1, 2),
        text=(96, 3),
        autoencoder=Stage(batch=256, lr=1e-3, minutes=7, average=0.9995),
        decoder=Stage(batch=256, lr=5e-4, minutes=2),
        words=Stage(batch=1024, lr=1e-3, minutes=2, average=0.99),
        diffusion=Stage(batch=512, lr=1e-3, minutes=15, warmup=500, average=0.9995),
        variants=16,
        channels_last=True,
    ),
    # 18.6 M. For two cores: fewer things, for it is words that take long to learn.
    "cpu": Profile(
        "cpu",
        size=64,
        vae=(32, 64, 128),
        unet=(64, 128, 192),
        attention=(1, 2),
        text=(96, 3),
        autoencoder=Stage(batch=16, lr=1e-3, minutes=40, warmup=50),
        decoder=Stage(batch=16, lr=5e-4, minutes=15, warmup=50),
        words=Stage(batch=512, lr=1e-3, minutes=5, warmup=50, average=0.99),
        diffusion=Stage(batch=64, lr=1e-3, minutes=250, average=0.998),
        variants=6,
        concepts="everyday.txt",
    ),
    # A toy for the tests.
    "quick": Profile(
        "quick",
        size=32,
        vae=(32, 32, 32),
        unet=(32, 64),
        attention=(1,),
        text=(32, 1),
        autoencoder=Stage(batch=16, lr=2e-3, minutes=1, steps=60, warmup=10, average=0.9),
        decoder=Stage(batch=16, lr=1e-3, minutes=1, steps=20, warmup=10, average=0.9),
        words=Stage(batch=32, lr=1e-3, minutes=1, steps=20, warmup=10, average=0.9),
        diffusion=Stage(batch=32, lr=2e-3, minutes=1, steps=60, warmup=10, average=0.9),
        variants=2,
    ),
}


def unet_table(
    widths: tuple[int, ...], blocks: int, attention: tuple[int, ...], c_context: int
) -> Table:
    """The UNet's rows, as CompVis's constructor makes them. Its SD 1.x is widths (320, 640, 1280,
    1280), 2 blocks, attention on levels 0 to 2 and c_context 768."""
    last = len(widths) - 1
    kind = ["res attn" if level in attention else "res" for level in range(last + 1)]
    down, c = [Row("conv", 4, widths[0])], widths[0]
    for level, c_out in enumerate(widths):
        for _ in range(blocks):
            down.append(Row(kind[level], c, c_out))
            c = c_out
        if level < last:
            down.append(Row("down", c, c))
    middle, up, skips = Row("res attn res", c, c), [], [row.c_out for row in down]
    for level, c_out in reversed([*enumerate(widths)]):
        for j in range(blocks + 1):
            layers = kind[level] + (" up" if j == blocks and level > 0 else "")
            up.append(Row(layers, c + skips.pop(), c_out))
            c = c_out
    return Table(tuple(down), middle, tuple(up), c_context)


def new_vae(profile: Profile) -> VAE:
    """With a posterior of std 0.05 at first: with PyTorch's start it is 1, far above the means, and
    for the first thousand steps little gets through but light and dark."""
    vae = VAE(profile.vae[0], profile.vae, blocks=1)
    nn.init.constant_(vae.quant_conv.bias[4:], -6)
    return vae


def new_text_encoder(profile: Profile) -> TextEncoder:
    """With small token vectors, as CLIP began: PyTorch's own, of variance 1, learn far slower."""
    width, layers = profile.text
    text = TextEncoder(width, layers, 4 * width, profile.heads)
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(text.embeddings.position_embedding.weight, std=0.01)
    return text


def new_unet(profile: Profile) -> UNet:
    """As SD began: every residual branch adds nothing yet."""
    unet = UNet(unet_table(profile.unet, 1, profile.attention, profile.text[0]), profile.heads)
    last = ("out_layers.3", "proj_out", "out.2")  # of residual block, transformer, the whole
    for name, module in unet.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet
