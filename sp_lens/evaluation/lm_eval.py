"""EleutherAI's Language Model Evaluation Harness on a hooked model."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sp_lens.data.tokenization import tokenizer_as_it_came, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.models.forward import inference
from sp_lens.models.hooks import kind_of
from sp_lens.models.task import require_causal


def lm_eval(
    model: Any,
    tasks: Sequence[Any],
    *,
    limit: float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness on the model, ablations in force included.

    The harness reads the transformers model inside the bridge, whose modules call the hooks: its own
    `hf` backend, with the tokenizer as the model's folder has it (TransformerLens' copy of it puts BOS before every
    text). So a model under `ablate` scores what `lm_eval --model hf` scores on its `export`.

    Args:
        model: a bridge that predicts the next token. A `HookedTransformer` is no model of transformers, which the
            harness reads: load it with `load_model`; its masks are of both.
        tasks: names ("mmlu", "lambada_openai"), or whatever else `lm_eval.simple_evaluate` takes for a task. Named
            tasks read their data sets from the Hub.
        limit: of the documents of each task, take so many, or this share of them; None takes all.
        num_fewshot: how many examples stand before each question; None is the task's own number.
        batch_size: requests in a batch.
        options: passed on to `lm_eval.simple_evaluate`: `task_manager`, `log_samples`, `bootstrap_iters`, ...

    Returns:
        What the harness returns: "results" by task, "configs", "versions", "samples", ...

    Raises:
        SpLensError: without lm-eval, for a `HookedTransformer`, and for a model that does not predict the next token.
    """
    require_causal(model, "lm-evaluation-harness")
    if not hasattr(model, "original_model"):
        raise SpLensError(
            f"lm-evaluation-harness reads a model of transformers, and {kind_of(model)} is none: load the model with "
            "load_model. Masks are of both."
        )
    try:
        harness: Any = import_module("lm_eval")  # by name: this module is called lm_eval too
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SpLensError(f"this needs lm-eval: pip install 'sp-lens[eval]' ({error}).") from error
    tokenizer = tokenizer_as_it_came(tokenizer_of(model))
    with inference(model):
        read = HFLM(pretrained=model.original_model, tokenizer=tokenizer, batch_size=batch_size)
        return harness.simple_evaluate(read, tasks=list(tasks), limit=limit, num_fewshot=num_fewshot, **options)
