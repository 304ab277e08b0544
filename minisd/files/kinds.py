"""Files that are something else: what they are, by their first bytes or their tensors' names."""

Shapes = dict[str, tuple[int, ...]]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}


def what_instead(head: bytes) -> str:
    """Name a file that is no weights file by its first bytes."""
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


def other_model(shapes: Shapes) -> str | None:
    """What a file is that holds another model's tensors, or a part of one's; None for SD 1.x."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in shapes)

    blocks = PREFIXES["unet"] + "input_blocks."
    channels = shapes.get(f"{blocks}0.0.weight", (0, 0))[1:2]
    context = shapes.get(f"{blocks}1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1:2]
    unet, vae, text = has(PREFIXES["unet"]), has(PREFIXES["vae"]), has("cond_stage_model.")
    lora = has("lora_", "lora.") or any(".lora_" in name for name in shapes)
    only, plain = "minisd is for SD 1.x", "minisd needs the plain one, for inpainting too"
    whole = "minisd needs a whole SD 1.x checkpoint in one file"
    for found, what in [
        (has("conditioner.embedders"), f"an SDXL checkpoint: {only}"),
        (has("cond_stage_model.model.") or context == (1024,), f"an SD 2.x checkpoint: {only}"),
        (has(PREFIXES["unet"] + "joint_blocks"), f"an SD 3 checkpoint: {only}"),
        (has("double_blocks", PREFIXES["unet"] + "double_blocks"), f"a Flux model: {only}"),
        (channels == (9,), f"an inpainting checkpoint (9 input channels): {plain}"),
        (channels == (8,), f"an instruct-pix2pix checkpoint (8 input channels): {plain}"),
        (lora, f"a LoRA, not a model: {whole}"),
        (
            has("control_model.", "zero_convs.", "controlnet_"),
            f"a ControlNet, not a model: {whole}",
        ),
        (has("emb_params"), f"a textual inversion embedding, not a model: {whole}"),
        (has("unet.", "down_blocks.", "encoder.down_blocks."), f"in the diffusers layout: {whole}"),
        (has("encoder.down.", "decoder.up."), f"an autoencoder alone: {whole}"),
        (has("input_blocks.", "diffusion_model.input_blocks."), f"a UNet alone: {whole}"),
        (has("text_model.", "transformer.text_model."), f"a text encoder alone: {whole}"),
        (has("model_ema.") and not unet, f"only training averages (model_ema.*): {whole}"),
        (vae and not unet, f"an autoencoder alone: {whole}"),
        (unet and not vae, f"a UNet without its autoencoder: {whole}"),
        (unet and not text, f"a UNet without its text encoder: {whole}"),
        (text and not unet, f"a text encoder alone: {whole}"),
    ]:
        if found:
            return f"this is {what}"
    return None if unet else "not an SD 1.x checkpoint: none of its tensors have SD's names"
