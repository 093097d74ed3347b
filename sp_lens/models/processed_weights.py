"""Detect value biases that TransformerLens has folded into the output bias of attention, which changes `hook_z`.

`HookedTransformer.from_pretrained` and `enable_compatibility_mode` process the weights. Folded layer norms and centred
weights change the activations of neurons and the log-probabilities only by rounding. Folding value biases adds b_V, by
way of W_O, to b_O and sets it to zero, so z lacks b_V. The log-probabilities stay the same, but the importances of
attention neurons, and what their ablation removes, are not those of the paper.
"""

import logging
from typing import Any

from sp_lens.errors import SpLensError

logger = logging.getLogger(__name__)

# An entry of the model's attributes, which records that the warning was given.
_WARNED = "_sp_lens_warned_of_processed_weights"


def value_biases_are_folded(model: Any) -> bool:
    """Return whether the value biases of a hooked model were folded into its output biases.

    They are if no attention layer has a value bias, and there is an output bias that explains where they went.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
    """
    if hasattr(model, "original_model"):
        if not getattr(model, "_weights_processed", False):
            return False
    elif (model.cfg.original_architecture, model.cfg.normalization_type) == ("GPTNeoForCausalLM", "LN"):
        # The only HookedTransformer with an output bias and no value bias. Folding its layer norms makes a value bias.
        return False
    attentions = [block.attn for block in model.blocks if getattr(block, "attn", None) is not None]
    return not any(_has_bias(attn, "b_V") for attn in attentions) and any(_has_bias(attn, "b_O") for attn in attentions)


def warn_if_processed(model: Any) -> None:
    """Log a warning, once for each model, if its value biases were folded."""
    if not vars(model).get(_WARNED) and value_biases_are_folded(model):
        vars(model)[_WARNED] = True
        logger.warning(
            "the value biases of this model were folded into the output biases, so the activations at attn.hook_z are "
            "not those of the paper, and ablating attention neurons differs from zeroing their weights. MLP neurons "
            "are not affected. Load the model with sp_lens.load_model or "
            "HookedTransformer.from_pretrained_no_processing, or call "
            "enable_compatibility_mode(fold_value_biases=False)."
        )


def require_unfolded(model: Any, purpose: str) -> None:
    """Raise SpLensError if the value biases of a model were folded.

    Args:
        model: Hooked model.
        purpose: What cannot be done with such a model, for the message.
    """
    if value_biases_are_folded(model):
        raise SpLensError(
            f"the value biases of this model were folded into the output biases, so it cannot be {purpose}: the part "
            "of the biases that belongs to a pruned neuron would remain. Load the model with sp_lens.load_model or "
            "HookedTransformer.from_pretrained_no_processing."
        )


def _has_bias(attention: Any, name: str) -> bool:
    bias = getattr(attention, name, None)
    return bias is not None and bool(bias.any())
