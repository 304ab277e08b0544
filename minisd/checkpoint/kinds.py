"""Files that minisd cannot use: what they are, by their first bytes or their tensors' names."""

import re

from minisd.checkpoint.names import PREFIXES, Shapes


def kind_of_file(head: bytes) -> str:
    """What a file is that is neither .safetensors nor .ckpt, by its first bytes."""
    text = head.lstrip().lower()
    if not head:
        return "the file is empty: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights: run `git lfs pull`, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page saved under the weights' name: download the file itself"
    if head.startswith(b"GGUF"):
        return "this is a GGUF file: minisd reads .ckpt and .safetensors"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")):
        return "this is a picture, not weights"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")):
        return "this is a compressed archive: unpack it first"
    if not any(head):
        return "the file holds only zeros: the download was not finished"
    return "not a weights file: neither .safetensors nor a torch .ckpt, or cut short"


ONLY = "minisd is for SD 1.x"
PLAIN = "minisd needs an ordinary SD 1.x checkpoint, for inpainting too"
COMPLETE = "minisd needs a whole SD 1.x checkpoint in one file"
FOLDER = f"{COMPLETE}, or the whole diffusers folder"
VAE = f"{COMPLETE}; --vae takes the autoencoder of this one"
LORA = f"{COMPLETE}; minisd convert --lora adds this to one"
WITHOUT = "minisd has no layers for these tensors"
UNKNOWN = "none of its tensors has a name of SD 1.x"


def kind_of_model(shapes: Shapes) -> tuple[str, str]:
    """What a file holds, as a noun, and why minisd does not load it; no reason for SD 1.x.

    shapes: under SD 1.x's names, and without leftovers if the file holds a whole model.
    """

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in shapes)

    def has_part(*parts: str) -> bool:
        return any(part in name for name in shapes for part in parts)

    model = PREFIXES["unet"]
    blocks = model + "input_blocks."
    c_in = shapes.get(f"{blocks}0.0.weight", (0, 0))[1:2]
    c_context = shapes.get(f"{blocks}1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1:2]
    unet, vae, text = has(model), has(PREFIXES["vae"]), has("cond_stage_model.")
    open_clip = has("cond_stage_model.model.transformer.")
    image_encoder = has("cond_stage_model.model.visual.", "cond_stage_model.mapper.")
    image_encoder = image_encoder and not open_clip
    lora = has("lora_", "lora.") or has_part(".lora_", ".hada_w1", ".lokr_w1", ".lora.")
    control = has("control_model.", "zero_convs.", "controlnet_")
    diffusers_vae = has("encoder.down_blocks.", "decoder.up_blocks.")
    embedding = bool(shapes) and all(re.fullmatch("<.*>", name) for name in shapes)
    for applies, kind, reason in [
        (has("conditioner.embedders"), "an SDXL checkpoint", ONLY),
        (has("cc_projection."), "a Zero123 checkpoint", ONLY),
        (image_encoder, "an image variations checkpoint, which reads a picture, not words", ONLY),
        (open_clip or c_context == (1024,), "an SD 2.x checkpoint", ONLY),
        (has("cond_stage_model.roberta."), "an AltDiffusion checkpoint", ONLY),
        (
            has("cond_stage_model.") and has_part(".word_embeddings.", ".encoder.layer."),
            "a checkpoint with BERT as its text encoder (Taiyi, Japanese Stable Diffusion)",
            ONLY,
        ),
        (has(model + "joint_blocks"), "an SD 3 checkpoint", ONLY),
        (has("double_blocks", model + "double_blocks"), "a Flux model", ONLY),
        (c_in == (9,), "an inpainting checkpoint (9 input channels)", PLAIN),
        (c_in == (8,), "an instruct-pix2pix checkpoint (8 input channels)", PLAIN),
        (c_in == (5,), "a depth-to-image checkpoint (5 input channels)", PLAIN),
        (has_part("motion_modules.", ".temporal_transformer."), "an AnimateDiff motion module",
         COMPLETE),
        (has(model + "time_embed.cond_proj"), "an LCM checkpoint (time_embed.cond_proj)", WITHOUT),
        (has(model + "position_net.") or (unet and has_part(".fuser.")),
         "a GLIGEN checkpoint (position_net, fuser)", WITHOUT),
        (lora, "a LoRA, not a model", LORA),
        (control, "a ControlNet, not a model", COMPLETE),
        (has("ip_adapter.", "image_proj."), "an IP-Adapter, not a model", COMPLETE),
        (has("adapter.body.", "body.0.block1."), "a T2I-Adapter, not a model", COMPLETE),
        (has("emb_params", "clip_l", "string_to_param") or embedding,
         "a textual inversion embedding, not a model", COMPLETE),
        (diffusers_vae, "an autoencoder in the diffusers layout", VAE),
        (has("unet.", "down_blocks."), "a UNet in the diffusers layout", FOLDER),
        (has("encoder.down.", "decoder.up."), "an autoencoder alone", VAE),
        (has("input_blocks.", "diffusion_model.input_blocks."), "a UNet alone", COMPLETE),
        (has("text_model.", "transformer.text_model."), "a text encoder alone", COMPLETE),
        (has("model_ema.") and not unet, "only training averages (model_ema.*)", COMPLETE),
        (vae and not unet, "an autoencoder alone", VAE),
        (unet and not vae, "a UNet without its autoencoder", COMPLETE),
        (unet and not text, "a UNet without its text encoder", COMPLETE),
        (text and not unet, "a text encoder alone", COMPLETE),
        (not unet, "not an SD 1.x checkpoint", UNKNOWN),
    ]:  # fmt: skip
        if applies:
            return kind, reason
    return "an SD 1.x checkpoint", ""
