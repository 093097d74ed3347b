"""A forward pass that is remembered, and run again from one site on, for several copies of the batch at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.models.fused_attention import substituted
from sp_lens.models.hooks import attentions, blocks_of, shares_keys, upstream
from sp_lens.neurons.layout import NeuronGroup

Stream = Float[torch.Tensor, "... row pos d_model"]


class Replay:
    """What the blocks and the attentions of a model returned in one pass; later passes need not compute it again.

    A later pass is a forward pass of the whole model, which makes its own positions and attention masks; only that
    modules upstream of a site return what is remembered, once for each copy of the rows, and compute nothing; and an
    attention starts from what its heads read, where its output weights are a module of their own.
    TransformerLens' own `start_at_layer` does not do: the bridge of 3.9 refuses it, that of 4.3 runs the blocks below
    all the same, and neither takes images.

    Example:
        >>> import sp_lens as sp
        >>> model, tokens = sp.load_model("demo"), torch.arange(5, 9)[None]
        >>> replay, last = Replay(model), sp.layout_of(model)[-1]
        >>> with torch.no_grad():
        ...     with replay.recording():
        ...         logits = model(tokens)
        ...     with replay.resuming(last, copies=3):
        ...         again = model(tokens.repeat(3, 1))
        >>> torch.allclose(again, logits.repeat(3, 1, 1), atol=1e-4)
        True
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._returned: dict[torch.nn.Module, tuple[Stream, int | None]] = {}
        self._read: dict[torch.nn.Module, Stream] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Remember the pass inside the `with`; one that was remembered before is forgotten."""
        self._returned, self._read = {}, {}
        attention = attentions(self._model)
        handles = [module.register_forward_hook(self._remember) for module in (*blocks_of(self._model), *attention)]
        last_ones = (last for last in attention.values() if last is not None)
        handles += [last.register_forward_pre_hook(self._remember_input) for last in last_ones]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for module, last in attention.items():  # BERT's attention adds the stream to it and norms: it starts anew
            if last in self._read and not torch.equal(last(self._read[last]), self._returned[module][0]):
                del self._read[last]

    @contextmanager
    def resuming(self, group: NeuronGroup, copies: int) -> Iterator[None]:
        """Passes over so many copies of the rows, in which nothing upstream of the group is computed.

        All is computed where blocks read more of the ones below than the residual stream.
        """
        if shares_keys(self._model):
            yield
            return
        with ExitStack() as stack:
            for module in upstream(self._model, group):
                if module in self._returned:
                    stack.enter_context(self._instead(module, lambda stream: stream, self._returned[module][0], copies))
            if group.site == "attn":
                module = blocks_of(self._model)[group.layer].attn
                last = attentions(self._model)[module]
                if last in self._read:
                    stack.enter_context(self._instead(module, last, self._read[last], copies))
            yield

    @contextmanager
    def _instead(
        self, module: torch.nn.Module, function: Callable[[Stream], Stream], stream: Stream, copies: int
    ) -> Iterator[None]:
        """The module returns what the function makes of copies of the stream, whatever it is given."""
        length = self._returned[module][1]

        def forward(*_: Any, **__: Any) -> Any:
            answer = function(torch.cat([stream] * copies, dim=-3))
            return answer if length is None else (answer, *[None] * (length - 1))

        with substituted(vars(module), "forward", forward):
            yield

    def _remember(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        # What comes with the stream (attention patterns, as large as all else together) nothing in a pass looks at.
        self._returned[module] = (output[0], len(output)) if isinstance(output, tuple) else (output, None)

    def _remember_input(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._read[module] = inputs[0]
