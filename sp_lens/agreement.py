"""Whether a model says the same when it is computed another way: a few random inputs, and what rounding may do."""

from typing import Any

import torch
from jaxtyping import Float

from sp_lens.tasks import reads_images

# Largest difference in log-probability between two ways in float32; other dtypes round more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def tolerance(model: Any) -> float:
    """How far apart the log-probabilities of two ways may be, in nats, by the dtype of the weights."""
    return TOLERANCE.get(next(model.parameters()).dtype, 1e-1)


def random_inputs(model: Any, *, longest: int = 64) -> torch.Tensor:
    """Two rows of at most `longest` tokens, or two images; always the same."""
    generator = torch.Generator().manual_seed(0)
    if reads_images(model):
        config, dtype = model.original_model.config, next(model.parameters()).dtype
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(model.cfg.d_vocab, (2, min(model.cfg.n_ctx, longest)), generator=generator)


def log_probabilities(model: Any, inputs: torch.Tensor) -> Float[torch.Tensor, "row pos d_vocab"]:
    """What the hooked model predicts, in float32 nats."""
    return model(inputs, return_type="logits").float().log_softmax(-1)
