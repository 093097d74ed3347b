"""What a model reads, tokens or pixels, and what it predicts."""

from typing import Any, Literal

import torch

from sp_lens.errors import SpLensError
from sp_lens.sites import blocks_of, kind_of

# The next token, tokens that are masked, or the class of an image.
Task = Literal["causal", "masked", "image"]


def reads_images(model: Any) -> bool:
    """Whether the model reads pixels, and no tokens."""
    return getattr(getattr(model, "original_model", None), "main_input_name", "input_ids") == "pixel_values"


def require_tokens(model: Any) -> None:
    """Refuse, with a `SpLensError`, a model of images or sound, and one with the tokenizer of another."""
    reads = getattr(getattr(model, "original_model", None), "main_input_name", "input_ids")
    if reads != "input_ids":
        raise SpLensError(
            f"{kind_of(model)} reads {reads}, and tokens of text were given: bring images, load_images(source, model), "
            "or a language model."
        )
    check_vocabulary(model)


def check_vocabulary(model: Any) -> None:
    """Refuse the tokenizer of another model: more tokens (but those added to a vocabulary) than embeddings."""
    known = getattr(getattr(model, "tokenizer", None), "vocab_size", 0)
    if known and known > model.cfg.d_vocab:
        raise SpLensError(
            f"the tokenizer knows {known} tokens and {kind_of(model)} has embeddings of {model.cfg.d_vocab}: it is of "
            "another model. Put this model's own tokenizer into its folder, or load it with that."
        )


def task_of(model: Any) -> Task | None:
    """What the model predicts, as its transformers class has it; None where it has no head for any of them."""
    kind = kind_of(model)
    if kind.endswith("ForMaskedLM"):  # by name, as TransformerLens 3.9 calls BERT causal
        # TransformerLens gives a bare BertModel (all-MiniLM) a head of random weights.
        saved = getattr(model.original_model.config, "architectures", None) or [kind]
        return None if saved[0].endswith("Model") else "masked"
    if reads_images(model):
        return "image" if kind.endswith("ForImageClassification") else None
    return None if getattr(model.cfg, "attention_dir", "causal") == "bidirectional" else "causal"


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
    return task


def context_of(model: Any) -> int:
    """The longest row of tokens that the model reads.

    RoBERTa counts positions from after the one that padding has, so its table is longer than its context.
    """
    for module in getattr(model, "original_model", model).modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == model.cfg.n_ctx:
            return model.cfg.n_ctx - (0 if module.padding_idx is None else module.padding_idx + 1)
    return model.cfg.n_ctx


def patches_of(model: Any) -> tuple[int, int]:
    """Of a model of images: how many positions stand before the patches (the class token), and how many patches."""
    config = model.original_model.config
    patches = (config.image_size // config.patch_size) ** 2
    (table,) = (p for name, p in model.original_model.named_parameters() if name.endswith("position_embeddings"))
    return table.shape[1] - patches, patches
