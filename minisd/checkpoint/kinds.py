"""Files that minisd cannot use: what they are, by their first bytes or their tensors' names."""

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


def kind_of_model(shapes: Shapes) -> str | None:
    """What a file is that holds another model, or only a part of one; None for SD 1.x."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in shapes)

    blocks = PREFIXES["unet"] + "input_blocks."
    c_in = shapes.get(f"{blocks}0.0.weight", (0, 0))[1:2]
    c_context = shapes.get(f"{blocks}1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1:2]
    unet, vae, text = has(PREFIXES["unet"]), has(PREFIXES["vae"]), has("cond_stage_model.")
    lora = has("lora_", "lora.") or any(".lora_" in name for name in shapes)
    control = has("control_model.", "zero_convs.", "controlnet_")
    diffusers = has("unet.", "down_blocks.", "encoder.down_blocks.")
    only = "minisd is for SD 1.x"
    plain = "minisd needs an ordinary SD 1.x checkpoint, for inpainting too"
    complete = "minisd needs a whole SD 1.x checkpoint in one file"
    for applies, kind in [
        (has("conditioner.embedders"), f"an SDXL checkpoint: {only}"),
        (has("cond_stage_model.model.") or c_context == (1024,), f"an SD 2.x checkpoint: {only}"),
        (has(PREFIXES["unet"] + "joint_blocks"), f"an SD 3 checkpoint: {only}"),
        (has("double_blocks", PREFIXES["unet"] + "double_blocks"), f"a Flux model: {only}"),
        (c_in == (9,), f"an inpainting checkpoint (9 input channels): {plain}"),
        (c_in == (8,), f"an instruct-pix2pix checkpoint (8 input channels): {plain}"),
        (lora, f"a LoRA, not a model: {complete}"),
        (control, f"a ControlNet, not a model: {complete}"),
        (has("emb_params"), f"a textual inversion embedding, not a model: {complete}"),
        (diffusers, f"in the diffusers layout: {complete}"),
        (has("encoder.down.", "decoder.up."), f"an autoencoder alone: {complete}"),
        (has("input_blocks.", "diffusion_model.input_blocks."), f"a UNet alone: {complete}"),
        (has("text_model.", "transformer.text_model."), f"a text encoder alone: {complete}"),
        (has("model_ema.") and not unet, f"only training averages (model_ema.*): {complete}"),
        (vae and not unet, f"an autoencoder alone: {complete}"),
        (unet and not vae, f"a UNet without its autoencoder: {complete}"),
        (unet and not text, f"a UNet without its text encoder: {complete}"),
        (text and not unet, f"a text encoder alone: {complete}"),
    ]:
        if applies:
            return f"this is {kind}"
    return None if unet else "not an SD 1.x checkpoint: none of its tensors has a name of SD 1.x"
