"""The names of the tensors in an SD 1.x checkpoint."""

Shapes = dict[str, tuple[int, ...]]

# Each model's names start with its prefix. The rest of a name is the module's attribute names.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}

# Tensors of no use here: minisd.schedule computes the training schedule, and the position ids are
# the numbers 0 to 76.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)  # (1000,) each
POSITION_IDS = PREFIXES["text_encoder"] + "embeddings.position_ids"  # (1, 77)
