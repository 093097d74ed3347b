"""What a model reads, tokens or pixels, and what it predicts."""

from typing import Any

from sp_lens.errors import SpLensError
from sp_lens.models.hooks import blocks_of, kind_of
from sp_lens.typing import Task

# Of language models that predict no token.
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def reads_images(model: Any) -> bool:
    """Whether the model reads pixels, and no tokens."""
    return _reads(model) == "pixel_values"


def require_tokens(model: Any) -> None:
    """Refuse, with a `SpLensError`, a model of images or sound, and one with the tokenizer of another."""
    if (reads := _reads(model)) != "input_ids":
        raise SpLensError(
            f"{kind_of(model)} reads {reads}, and this is for models that read tokens of text: for images there is "
            "load_images(source, model), whose images collect, evaluate, prune and ablation_effect take."
        )
    check_vocabulary(model)


def _reads(model: Any) -> str:
    return getattr(getattr(model, "original_model", None), "main_input_name", "input_ids")


def check_vocabulary(model: Any) -> None:
    """Refuse the tokenizer of another model: more tokens (but those added to a vocabulary) than embeddings."""
    known = getattr(getattr(model, "tokenizer", None), "vocab_size", 0)
    if known and known > model.cfg.d_vocab:
        raise SpLensError(
            f"the tokenizer knows {known} tokens and {kind_of(model)} has embeddings of {model.cfg.d_vocab}: it is of "
            "another model. Put this model's own tokenizer into its folder, or load it with that."
        )


def task_of(model: Any) -> Task | None:
    """What the model predicts, as its transformers class has it; None where it has no trained head for any of them."""
    kind = kind_of(model)
    if kind.endswith("ForMaskedLM"):  # by name, as TransformerLens 3.9 calls BERT causal
        task: Task = "masked"
    elif reads_images(model):
        task = "image"
    elif getattr(model.cfg, "attention_dir", "causal") == "bidirectional":
        return None
    else:
        task = "causal"
    return task if _head_is_trained(model, task) else None


def _head_is_trained(model: Any, task: Task) -> bool:
    """Whether the weights were saved with this head: transformers adds a random one to a bare model (all-MiniLM)."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    saved = (getattr(config, "architectures", None) or [kind_of(model)])[0]
    bare = saved.endswith("Model") and not saved.endswith("LMHeadModel")
    if bare or saved.endswith(_OTHER_HEADS):
        return task == "causal" and bool(getattr(config, "tie_word_embeddings", False))  # the head is the embedding
    return task != "image" or saved.endswith("ForImageClassification")


def require_task(model: Any) -> Task:
    """What the model predicts.

    Raises:
        SpLensError: for something that TransformerLens has not hooked, and for a model without a head.
    """
    blocks_of(model)
    if (task := task_of(model)) is None:
        raise SpLensError(
            f"{kind_of(model)} has no trained head, so its predictions mean nothing: collect() and score() "
            "work; for the rest bring a causal or masked language model (ForCausalLM, ForMaskedLM) or an image "
            "classifier (ForImageClassification)."
        )
    if task == "masked" and getattr(getattr(model, "tokenizer", None), "mask_token_id", None) is None:
        raise SpLensError(
            "the tokenizer has no mask token, and the model is asked for what it hides: bring its own tokenizer."
        )
    return task


def require_causal(model: Any, purpose: str) -> None:
    """Refuse, with a `SpLensError`, whatever does not predict the next token, which `purpose` needs."""
    if (task := require_task(model)) != "causal":
        predicts = {"masked": "tokens that are masked", "image": "the class of an image"}[task]
        raise SpLensError(
            f"{kind_of(model)} predicts {predicts}, and {purpose} needs a model that predicts the next token: bring a "
            "causal language model (ForCausalLM)."
        )


def patches_of(model: Any) -> tuple[int, int]:
    """Of a model of images: how many positions stand before the patches (the class token), and how many patches."""
    config = model.original_model.config
    patches = (config.image_size // config.patch_size) ** 2
    (table,) = (p for name, p in model.original_model.named_parameters() if name.endswith("position_embeddings"))
    return table.shape[1] - patches, patches
