"""Determine what a model reads (tokens or pixels) and what it predicts (next tokens, masked tokens, or classes)."""

from typing import Any

from sp_lens.errors import SpLensError
from sp_lens.models.hooks import blocks_of, kind_of
from sp_lens.typing import Task

# Suffixes of the classes of language models that do not predict tokens.
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def reads_images(model: Any) -> bool:
    """Return whether the input of the model is pixels."""
    return _input_name(model) == "pixel_values"


def require_tokens(model: Any) -> None:
    """Raise SpLensError if the model does not read tokens, or its tokenizer belongs to another model."""
    if (name := _input_name(model)) != "input_ids":
        raise SpLensError(
            f"{kind_of(model)} reads {name}, but this function needs a model that reads tokens. For images, use "
            "load_images(source, model) with collect, evaluate, prune or ablation_effect."
        )
    check_vocabulary(model)


def _input_name(model: Any) -> str:
    return getattr(getattr(model, "original_model", None), "main_input_name", "input_ids")


def check_vocabulary(model: Any) -> None:
    """Raise SpLensError if the tokenizer has more tokens than the model has embeddings.

    Tokens that were added to a vocabulary are not counted.
    """
    vocabulary = getattr(getattr(model, "tokenizer", None), "vocab_size", 0)
    if vocabulary and vocabulary > model.cfg.d_vocab:
        raise SpLensError(
            f"the tokenizer has {vocabulary} tokens, but {kind_of(model)} has only {model.cfg.d_vocab} embeddings: it "
            "belongs to another model. Put the tokenizer of this model into its folder, or load the model with it."
        )


def task_of(model: Any) -> Task | None:
    """Return what the model predicts, or None if it has no trained head.

    The class of the transformers model determines the task, because TransformerLens 3.9 describes BERT as causal.
    """
    kind = kind_of(model)
    if kind.endswith("ForMaskedLM"):
        task: Task = "masked"
    elif reads_images(model):
        task = "image"
    elif getattr(model.cfg, "attention_dir", "causal") == "bidirectional":
        return None
    else:
        task = "causal"
    return task if _head_is_trained(model, task) else None


def _head_is_trained(model: Any, task: Task) -> bool:
    """Return whether the head was saved with the weights.

    transformers adds a randomly initialised head to a model that was saved without one (all-MiniLM).
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    saved = (getattr(config, "architectures", None) or [kind_of(model)])[0]
    without_head = saved.endswith("Model") and not saved.endswith("LMHeadModel")
    if without_head or saved.endswith(_OTHER_HEADS):
        return task == "causal" and bool(getattr(config, "tie_word_embeddings", False))  # the head is the embedding
    return task != "image" or saved.endswith("ForImageClassification")


def require_task(model: Any) -> Task:
    """Return what the model predicts.

    Raises:
        SpLensError: If the model is not a TransformerLens model, has no trained head, or is a masked language model
            whose tokenizer has no mask token.
    """
    blocks_of(model)
    if (task := task_of(model)) is None:
        raise SpLensError(
            f"{kind_of(model)} has no trained head, so its predictions are meaningless. collect() and score() work. "
            "For everything else, load a causal or masked language model (ForCausalLM, ForMaskedLM) or an image "
            "classifier (ForImageClassification)."
        )
    if task == "masked" and getattr(getattr(model, "tokenizer", None), "mask_token_id", None) is None:
        raise SpLensError(
            "the tokenizer has no mask token, which is needed to evaluate a masked language model: load the model with "
            "its own tokenizer."
        )
    return task


def require_causal(model: Any, purpose: str) -> None:
    """Raise SpLensError if the model does not predict the next token.

    Args:
        model: Hooked model.
        purpose: Name of what needs such a model, for the message.
    """
    if (task := require_task(model)) != "causal":
        predicts = {"masked": "masked tokens", "image": "the class of an image"}[task]
        raise SpLensError(
            f"{kind_of(model)} predicts {predicts}, but {purpose} needs a model that predicts the next token: load a "
            "causal language model (ForCausalLM)."
        )


def patches_of(model: Any) -> tuple[int, int]:
    """Return how many positions of an image model are not patches (such as the class token), and how many are."""
    config = model.original_model.config
    patches = (config.image_size // config.patch_size) ** 2
    (table,) = (p for name, p in model.original_model.named_parameters() if name.endswith("position_embeddings"))
    return table.shape[1] - patches, patches
