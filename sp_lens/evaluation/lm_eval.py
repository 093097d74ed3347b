"""Run EleutherAI's Language Model Evaluation Harness on a hooked model."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sp_lens.data.tokenization import original_tokenizer
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
    """Run tasks of EleutherAI's lm-evaluation-harness on the model, with active ablations applied.

    The harness reads the transformers model inside the bridge, whose modules call the hooks, with its own `hf` backend.
    The tokenizer is loaded again from the model's folder, because the copy of TransformerLens puts BOS before every
    text. Therefore a model under `ablate` has the scores that `lm_eval --model hf` measures on its `export`.

    Args:
        model: A bridge that predicts the next token. A `HookedTransformer` contains no transformers model for the
            harness to read; load the model with `load_model` instead. Masks fit both.
        tasks: Names of tasks ("mmlu", "lambada_openai"), or any other tasks that `lm_eval.simple_evaluate` accepts.
            Named tasks read their datasets from the Hub.
        limit: Maximum number of documents of each task, or, below 1, a share of them. None reads all.
        num_fewshot: Number of examples before each question. None uses the number of the task.
        batch_size: Number of requests per batch.
        options: Further arguments of `lm_eval.simple_evaluate`: `task_manager`, `log_samples`, `bootstrap_iters`, ...

    Returns:
        The dictionary that the harness returns, with "results" by task, "configs", "versions", "samples", ...

    Raises:
        SpLensError: If lm-eval is not installed, or the model is a `HookedTransformer` or does not predict the next
            token.
    """
    require_causal(model, "lm-evaluation-harness")
    if not hasattr(model, "original_model"):
        raise SpLensError(
            f"lm-evaluation-harness reads a transformers model, and {kind_of(model)} contains none. Load the model "
            "with load_model; masks fit both."
        )
    try:
        harness: Any = import_module("lm_eval")  # by name, because this module is called lm_eval too
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SpLensError(f"lm_eval needs the package lm-eval: pip install 'sp_lens[eval]' ({error}).") from error
    tokenizer = original_tokenizer(model)
    with inference(model):
        hflm = HFLM(pretrained=model.original_model, tokenizer=tokenizer, batch_size=batch_size)
        return harness.simple_evaluate(hflm, tasks=list(tasks), limit=limit, num_fewshot=num_fewshot, **options)
