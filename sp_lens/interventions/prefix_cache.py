"""Record a forward pass and resume it at a later block, for several copies of the batch at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.models.fused_attention import substituted
from sp_lens.models.hooks import attentions, blocks_of, shares_keys, upstream
from sp_lens.neurons.layout import NeuronGroup

# The residual stream, or what is added to it.
Stream = Float[torch.Tensor, "... row pos d_model"]


class Replay:
    """A cache of what the blocks and attention layers returned in one forward pass, so that later passes can reuse it.

    A later pass is a forward pass of the whole model, which computes its own positions and attention masks. Modules
    upstream of the resumed group return the cached output, once for each copy of the rows, instead of computing it. If
    the group is that of an attention layer whose output projection is a module of its own, only that projection is
    computed, from the cached z.

    TransformerLens' `start_at_layer` cannot be used for this: the bridge of version 3.9 rejects it, that of 4.3 runs
    the earlier blocks anyway, and neither supports images.

    Example:
        >>> import sp_lens as sp
        >>> model, tokens = sp.load_model("demo"), torch.arange(5, 9)[None]
        >>> replay, last_group = Replay(model), sp.layout_of(model)[-1]
        >>> with torch.no_grad():
        ...     with replay.recording():
        ...         logits = model(tokens)
        ...     with replay.resuming(last_group, copies=3):
        ...         repeated = model(tokens.repeat(3, 1))
        >>> torch.allclose(repeated, logits.repeat(3, 1, 1), atol=1e-4)
        True
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # The stream that a module returned, and the length of the tuple it was in (None if it was not in a tuple).
        self._outputs: dict[torch.nn.Module, tuple[Stream, int | None]] = {}
        # The inputs of the output projections of attention layers.
        self._projection_inputs: dict[torch.nn.Module, Stream] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context manager that records the forward pass inside it and discards an earlier recording."""
        self._outputs, self._projection_inputs = {}, {}
        projections = attentions(self._model)
        handles = [
            module.register_forward_hook(self._record_output) for module in (*blocks_of(self._model), *projections)
        ]
        handles += [
            projection.register_forward_pre_hook(self._record_input)
            for projection in projections.values()
            if projection is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # BERT's attention adds the residual stream to the projection and normalises: it is recomputed as a whole.
        for attention, projection in projections.items():
            if projection in self._projection_inputs:
                output = projection(self._projection_inputs[projection])
                if not torch.equal(output, self._outputs[attention][0]):
                    del self._projection_inputs[projection]

    @contextmanager
    def resuming(self, group: NeuronGroup, copies: int) -> Iterator[None]:
        """Context manager in which forward passes over `copies` copies of the rows skip what is upstream of the group.

        Nothing is skipped if blocks read more of earlier blocks than the residual stream (shared keys and values).
        """
        if shares_keys(self._model):
            yield
            return
        with ExitStack() as stack:
            for module in upstream(self._model, group):
                if module in self._outputs:
                    stream = self._outputs[module][0]
                    stack.enter_context(self._replaced(module, lambda copied: copied, stream, copies))
            if group.site == "attn":
                attention = blocks_of(self._model)[group.layer].attn
                projection = attentions(self._model)[attention]
                if projection in self._projection_inputs:
                    stream = self._projection_inputs[projection]
                    stack.enter_context(self._replaced(attention, projection, stream, copies))
            yield

    @contextmanager
    def _replaced(
        self, module: torch.nn.Module, function: Callable[[Stream], Stream], stream: Stream, copies: int
    ) -> Iterator[None]:
        """Context manager in which the module ignores its inputs and returns `function` of the copied stream."""
        length = self._outputs[module][1]

        def forward(*_: Any, **__: Any) -> Any:
            output = function(torch.cat([stream] * copies, dim=-3))
            return output if length is None else (output, *[None] * (length - 1))

        with substituted(vars(module), "forward", forward):
            yield

    def _record_output(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        # The rest of a tuple is not used in a pass: attention patterns, as large as everything else together.
        self._outputs[module] = (output[0], len(output)) if isinstance(output, tuple) else (output, None)

    def _record_input(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._projection_inputs[module] = inputs[0]
