"""The transformers model behind a bridge, without the bridge: to save it, and to verify the bridge.

A bridge wraps modules of the model, which changes the names in its state dict and how it runs.
"""

import copy
import logging
from typing import Any

import torch
from accelerate import init_empty_weights

from sp_lens.errors import SpLensError
from sp_lens.models.exclusive import exclusive
from sp_lens.models.forward import evaluation_mode, input_device, random_inputs
from sp_lens.models.hooks import kind_of, model_name
from sp_lens.models.task import reads_images

logger = logging.getLogger(__name__)

# Largest difference in logits between a bridge and its model, relative to the largest logit. Correct bridges differ by
# rounding: by at most 7e-7 in float32 over the tested architectures, and on SmolLM2-135M by 2e-3 in float16 and 2.4e-2
# in bfloat16. The error of GPT-1 may be 1.5e-2, so it is found in float32, but not always in bfloat16.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# An entry of the model's attributes, which records that it was compared.
_VERIFIED = "_sp_lens_verified"


def without_weights(bridged: Any, config: Any = None) -> Any:
    """Create a model of the same class as the model in a bridge, with its parameters, but not its buffers, on "meta".

    Args:
        bridged: The transformers model in a bridge.
        config: Another configuration for the new model.
    """
    config = copy.deepcopy(bridged.config if config is None else config)
    config.output_attentions = False  # TransformerLens sets this, and the default attention kernel does not support it
    with init_empty_weights(include_buffers=False):
        # transformers saves the dtype of the model, not that of the configuration.
        return type(bridged)(config).to(next(bridged.parameters()).dtype)


def plain_state(bridged: torch.nn.Module, empty: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model inside a bridge under the names of `empty`, a model of the same class.

    Raises:
        SpLensError: If the bridge lacks a weight, or has one of another shape.
    """
    expected = empty.state_dict()
    state = {name.replace("._original_component", ""): tensor for name, tensor in bridged.state_dict().items()}
    kind = type(bridged).__name__
    if missing := [name for name in expected if name not in state]:
        raise SpLensError(f"{kind} cannot be exported: the model in the bridge has no weight {missing[0]!r}.")
    if different := [name for name, tensor in expected.items() if tensor.shape != state[name].shape]:
        name = different[0]
        raise SpLensError(
            f"transformers could not load this {kind}: {name} has the shape {tuple(state[name].shape)}, but its "
            f"configuration requires {tuple(expected[name].shape)}. If the model was compacted, export the original "
            "one, with compact=True if desired."
        )
    return {name: state[name] for name in expected}


def verify_bridge(model: Any) -> None:
    """Compare the logits of a bridge with those of its transformers model, on a short padded batch.

    This costs two forward passes of two rows of 16 tokens; the weights are shared, not copied. TransformerLens
    implements some architectures incorrectly: it loses the causal mask of GPT-1 if a row is padded, and ignores
    `scale_attn_weights=False` of GPT-2. A model that is quantized, on several devices, or whose weights were processed
    by TransformerLens is not compared, nor is a `HookedTransformer`.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.

    Raises:
        SpLensError: If they differ by more than rounding. The message has the size of the difference.
    """
    bridged = getattr(model, "original_model", None)
    if bridged is None or getattr(model, "_weights_processed", False) or getattr(bridged, "hf_device_map", None):
        return
    if getattr(bridged.config, "quantization_config", None) is not None:
        return
    plain = without_weights(bridged)
    try:
        plain.load_state_dict(plain_state(bridged, plain), assign=True)
    except SpLensError as error:  # for example because the layers were compacted
        logger.info("%s is not compared with transformers: %s", kind_of(model), error)
        return
    inputs = random_inputs(model, longest=16)
    options: dict[str, Any] = {}
    real = torch.ones(inputs.shape[:2], dtype=torch.bool)
    if not reads_images(model):
        real[1, inputs.shape[1] * 2 // 3 :] = False  # the second row is padded
        options["attention_mask"] = real.long().to(input_device(model))
    inputs = inputs.to(input_device(model))
    with torch.no_grad(), evaluation_mode(model):  # `inference` would use the attention of transformers where it can
        output = plain.to(inputs.device).eval()(inputs, **options)
        actual = model(inputs, return_type="logits", **options)
    if not hasattr(output, "logits"):  # a model without a head
        return
    expected, actual = output.logits.double()[..., : actual.shape[-1]], actual.double()
    difference, largest = (tensor if reads_images(model) else tensor[real] for tensor in (actual - expected, expected))
    if not largest.isfinite().all():  # `collect` and `evaluate` say where it comes from
        return
    relative = float(difference.abs().max() / largest.abs().max())
    if not relative <= TOLERANCE.get(next(model.parameters()).dtype, 5e-2):
        raise SpLensError(
            f"TransformerLens computes other logits than transformers for {kind_of(model)}: on a short padded batch of "
            f"{model_name(model)!r} they differ by {float(difference.abs().max()):.2g}, which is {relative:.1%} of the "
            "largest logit. Results would be those of another model. Use another version of TransformerLens or another "
            "model; to use the model anyway, pass verify=False to load_model."
        )


def verify_once(model: Any) -> None:
    """Call `verify_bridge` for a model that was not verified before, unless hooks are attached that may change it."""
    if is_verified(model):
        return
    with exclusive(model):
        handles = (handle for point in model.hook_dict.values() for handle in point.fwd_hooks)
        if all(handle.is_permanent and _is_internal(handle) for handle in handles):
            verify_bridge(model)
            mark_verified(model)


def _is_internal(handle: Any) -> bool:
    """Return whether TransformerLens 4 attached a permanent hook itself, to connect modules."""
    return getattr(getattr(handle, "user_hook", None), "__module__", "").startswith("transformer_lens")


def is_verified(model: Any) -> bool:
    """Return whether the bridge was verified, or loaded with `verify=False`."""
    return bool(vars(model).get(_VERIFIED))


def mark_verified(model: Any) -> None:
    """Record that a bridge need not be verified."""
    vars(model)[_VERIFIED] = True
