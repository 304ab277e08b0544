"""The models' sizes and the training budgets: one profile for each kind of machine."""

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
    until: float | None = None  # when it must end, as time.monotonic(); this replaces the minutes
    average: float = 0.999  # decay of the running average of the weights, which is exported


@dataclass(frozen=True)
class Profile:
    name: str
    size: int  # pixels a side
    vae: tuple[int, ...]  # channels of its levels; each further level halves the latent's side
    unet: tuple[int, ...]  # channels of its levels
    attention: tuple[int, ...]  # levels with transformers; level 0 has the latent's own size
    text: tuple[int, int]  # width, layers
    autoencoder: Stage
    decoder: Stage
    words: Stage
    diffusion: Stage
    variants: int  # augmented pictures for each emoji picture
    drawings: int  # rough drawings for each emoji picture
    anything: int  # pictures of anything
    heads: int = 4
    captions: int = 4  # for each picture that is drawn
    concepts: str | None = None  # file with the labels to learn; None: all
    compiled: bool = False  # on a GPU: torch.compile
    channels_last: bool = False  # on a GPU: the memory format of its convolutions

    def facts(self, stage: str) -> dict[str, Any]:
        """The settings that must be equal to continue a stopped stage: all but its times."""
        facts = asdict(self)
        stages = {name: facts.pop(name) for name in STAGES}
        del stages[stage]["minutes"], stages[stage]["until"]
        if stage in ("autoencoder", "decoder"):
            facts = {name: facts[name] for name in ("name", "size", "vae")}
        return facts | {stage: stages[stage]}


# Every GroupNorm has 32 groups, so all widths are multiples of 32. The files of gpu and cpu have
# 37 MB in float16. A quarter of that is the embedding of CLIP's 49,408 tokens, most of which
# do not occur in the captions.
PROFILES = {
    # The same model as that of "cpu", with more pictures. For some minutes of one large GPU.
    "gpu": Profile(
        "gpu",
        size=64,
        vae=(32, 64, 128),
        unet=(64, 128, 192),
        attention=(1, 2),
        text=(96, 3),
        autoencoder=Stage(batch=256, lr=1e-3, minutes=1.8, warmup=100, average=0.998),
        decoder=Stage(batch=256, lr=5e-4, minutes=0, warmup=100),
        words=Stage(batch=1024, lr=1e-3, minutes=0.5, average=0.99),
        diffusion=Stage(batch=512, lr=1e-3, minutes=5, warmup=300, average=0.999),
        variants=64,
        drawings=64,
        anything=160_000,
        captions=2,
        concepts="everyday.txt",
        compiled=True,
        channels_last=True,
    ),
    # 18.6 M parameters. For two cores: few labels, because the words take longest to learn.
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
        drawings=6,
        anything=10_000,
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
        drawings=1,
        anything=32,
    ),
}


def unet_table(
    widths: tuple[int, ...], blocks: int, attention: tuple[int, ...], c_context: int
) -> Table:
    """The UNet's rows, as CompVis's constructor makes them.

    SD 1.x has the widths (320, 640, 1280, 1280), 2 blocks, attention on levels 0 to 2, and
    c_context 768.
    """
    last = len(widths) - 1
    layers_at = ["res attn" if level in attention else "res" for level in range(last + 1)]
    down, c = [Row("conv", 4, widths[0])], widths[0]
    for level, c_out in enumerate(widths):
        for _ in range(blocks):
            down.append(Row(layers_at[level], c, c_out))
            c = c_out
        if level < last:
            down.append(Row("down", c, c))
    middle, up, skips = Row("res attn res", c, c), [], [row.c_out for row in down]
    for level, c_out in reversed([*enumerate(widths)]):
        for j in range(blocks + 1):
            layers = layers_at[level] + (" up" if j == blocks and level > 0 else "")
            up.append(Row(layers, c + skips.pop(), c_out))
            c = c_out
    return Table(tuple(down), middle, tuple(up), c_context)


def new_vae(profile: Profile) -> VAE:
    """A new autoencoder whose posterior has a std of 0.05.

    With PyTorch's initial values it is 1, far above the means. Then for the first thousand steps
    little more than light and dark gets through.
    """
    vae = VAE(profile.vae[0], profile.vae, blocks=1)
    nn.init.constant_(vae.quant_conv.bias[4:], -6)
    return vae


def new_text_encoder(profile: Profile) -> TextEncoder:
    """A new text encoder, initialized with small token vectors, as CLIP was.

    PyTorch's initial vectors have variance 1 and learn far slower.
    """
    width, layers = profile.text
    text = TextEncoder(width, layers, 4 * width, profile.heads)
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(text.embeddings.position_embedding.weight, std=0.01)
    return text


def new_unet(profile: Profile) -> UNet:
    """A new UNet, initialized as SD's: every residual branch adds zero at first."""
    unet = UNet(unet_table(profile.unet, 1, profile.attention, profile.text[0]), profile.heads)
    last = ("out_layers.3", "proj_out", "out.2")  # of a residual block, a transformer, the UNet
    for name, module in unet.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet
