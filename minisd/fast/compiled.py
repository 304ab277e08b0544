"""The UNet through PyTorch's own compiler."""

from minisd.stable_diffusion import StableDiffusion


def compile(sd: StableDiffusion, **options: object) -> None:
    """Let torch.compile compile the UNet, in place, for each size that it meets.

    The first call of each size takes minutes. options: those of torch.compile;
    `mode="reduce-overhead"` uses CUDA graphs.
    """
    sd.unet.compile(**{"dynamic": False, **options})
