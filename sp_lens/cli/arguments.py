"""What the commands of `sp-lens` read: the options that name a model and data, and what they name."""

import argparse
from typing import Any

DEFAULT_TOKENS = 100_000  # of each corpus, as in the released experiments


def model_of(arguments: argparse.Namespace) -> Any:
    """The model that was asked for."""
    import torch

    import sp_lens as sp
    from sp_lens import distributed

    quieten()
    return sp.load_model(
        arguments.model,
        device=arguments.device if arguments.device or arguments.device_map else distributed.own_device(),
        device_map=arguments.device_map,
        dtype=getattr(torch, arguments.dtype),
    )


def quieten() -> None:
    """Leave the terminal to our own bars and words."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def corpus_of(arguments: argparse.Namespace, model: Any, name: str, split: Any) -> Any:
    """Text, or for a classifier images: "digits", "digits:3,8" (these classes), "digits:-3,-8" (all but these)."""
    import sp_lens as sp
    from sp_lens.data.images import split_classes
    from sp_lens.models.task import reads_images

    if not reads_images(model):
        if arguments.images is not None:
            raise sp.SpLensError(f"--images is of classifiers, and {arguments.model} reads text: say --tokens.")
        tokens = arguments.tokens or DEFAULT_TOKENS
        return sp.load_corpus(name, model, tokens=tokens, split=split, offline=arguments.offline)
    if arguments.tokens is not None:
        raise sp.SpLensError(f"--tokens is of text, and {arguments.model} reads images: say --images.")
    source, classes = split_classes(name)
    return sp.load_images(source, model, **classes, images=arguments.images, split=split, offline=arguments.offline)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options of `model_of`."""
    parser.add_argument(
        "--model", required=True, help="demo, demo-masked, demo-vision, a Hugging Face name, a folder, or a GGUF file"
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, mps (default: TransformerLens chooses; of several processes, each has its own)",
    )
    parser.add_argument("--device-map", metavar="MAP", help="over several GPUs: auto, balanced or sequential")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"),
        help="of the weights (default: %(default)s)",
    )  # fmt: skip


def add_model_and_data(parser: argparse.ArgumentParser, split: str | None = None) -> None:
    """The options of `model_of` and `corpus_of`; with a `split`, of one corpus and where it is from."""
    add_model(parser)
    parser.add_argument("--tokens", type=positive, help=f"of each corpus of text (default: {DEFAULT_TOKENS})")
    parser.add_argument(
        "--images", type=positive,
        help="of each corpus, where the model is a classifier of images; a corpus is then a set (digits, cifar10, "
        "cifar100, imagenet_birds, imagenet_birdless) or a folder of class folders, with classes to take (digits:3,8) "
        "or to leave out (digits:-3,-8) (default: all there are)",
    )  # fmt: skip
    parser.add_argument(
        "--offline", action="store_true", help="read what this machine has, not the Hub's text or images"
    )
    if split:
        parser.add_argument(
            "--corpus", required=True, help="a name (code, prose, ...) or a file of text, or images (see --images)"
        )
        parser.add_argument("--split", default=split, choices=("train", "collect", "evaluate"))


def positive(text: str) -> int:
    """A number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
