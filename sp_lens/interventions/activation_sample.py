"""Sample activations from a corpus, as replacement values for resample ablation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float

from sp_lens.data.batching import batches, no_counted_token
from sp_lens.errors import check_at_least
from sp_lens.models.forward import forward, inference
from sp_lens.models.hooks import attached, check_mask, model_name
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.typing import BATCH_TOKENS


@dataclass(frozen=True, eq=False)
class ActivationSample:
    """Activations of the masked neurons at random tokens of a corpus: the replacement values of resample ablation.

    Attributes:
        values: Activations by hook name, `Float[" token chosen"]`, of the neurons that the mask marks, in order.
        mask: The neurons.
        about: Where the sample comes from (the name of the model).
    """

    values: Mapping[str, Float[torch.Tensor, "token chosen"]]
    mask: NeuronMask
    about: Mapping[str, Any]


def sample_activations(
    model: Any, corpus: Any, mask: NeuronMask, *, tokens: int = 1024, seed: int = 0, batch_tokens: int = BATCH_TOKENS
) -> ActivationSample:
    """Sample the activations of the masked neurons at random tokens of a corpus, for `ablate(..., mode="resample")`.

    The sample is uniform over the counted tokens (no padding, no special token, not the first token of a row) and is
    drawn in one pass over the corpus. Memory does not grow with the number of tokens: each token gets a random key, and
    the `tokens` smallest keys are kept.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: Text or images, as `collect` takes them.
        mask: The neurons to record (True).
        tokens: Number of tokens to sample. A smaller corpus is taken as a whole.
        seed: Seed of the random draw.
        batch_tokens: Number of tokens per batch, including padding.

    Raises:
        SpLensError: If the mask belongs to another model, `tokens` is below 1, or no token of the corpus counts.
    """
    check_mask(model, mask)
    check_at_least(1, tokens=tokens)
    groups = [group for group in mask.layout if mask[group.name].any()]
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(0)
    sample: dict[str, torch.Tensor] = {}
    with inference(model):
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            recorded: dict[str, torch.Tensor] = {}
            hooks = [(group, _recorder(group, mask[group.name], batch.in_context, recorded)) for group in groups]
            with attached(model, hooks):
                forward(model, batch)
            keys = torch.cat([keys, torch.rand(int(batch.in_context.sum()), generator=generator)])
            order = keys.argsort(stable=True)[:tokens]  # equal keys must not make the sample depend on the batches
            keys = keys[order]
            for name, values in recorded.items():
                candidates = torch.cat([sample[name], values]) if name in sample else values
                sample[name] = candidates[order.to(values.device)]
    if not len(keys):
        raise no_counted_token()
    return ActivationSample(sample, mask, {"model": model_name(model)})


def _recorder(
    group: NeuronGroup,
    marked: Bool[torch.Tensor, " neuron"],
    counted: Bool[torch.Tensor, "row pos"],
    recorded: dict[str, torch.Tensor],
) -> Callable[..., None]:
    """Return a hook that stores the activations of the marked neurons at the counted tokens in `recorded`."""

    def record(activation: torch.Tensor, hook: Any) -> None:
        flat = activation.reshape(-1, group.width)
        recorded[group.name] = flat[counted.flatten().to(flat.device)][:, marked.to(flat.device)]

    return record
