"""Options that several commands share, and loading the model and the corpora that they name."""

import argparse
import logging
from typing import TYPE_CHECKING, Any

from sp_lens.typing import SPLITS, Split

if TYPE_CHECKING:
    import sp_lens as sp

DEFAULT_TOKENS = 100_000  # per corpus, as in the released experiments


def add_command(
    commands: Any, name: str, function: Any, description: str, example: str, *, distributed: bool = False
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        commands: Subparsers to which the command is added.
        name: Name of the command.
        function: Function that runs the command with the parsed arguments.
        description: Noun phrase in lower case that describes the command, without a full stop.
        example: Complete command line that is shown at the end of the help.
        distributed: Whether several processes can run the command together.
    """
    parser = commands.add_parser(
        name,
        help=description,
        description=f"{description[0].upper()}{description[1:]}.",
        epilog=f"example: {example}",
    )
    parser.set_defaults(command=function, prog=parser.prog, distributed=distributed)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_model` reads."""
    parser.add_argument(
        "--model",
        required=True,
        help="demo, demo-masked, demo-vision, the name of a Hugging Face model, a folder, or a GGUF file",
    )
    parser.add_argument(
        "--device",
        help="device of the model: cpu, cuda, cuda:1, mps (default: the choice of TransformerLens; with several "
        "processes, one GPU for each)",
    )
    parser.add_argument(
        "--device-map", metavar="MAP", help="how to spread the model over several GPUs: auto, balanced, or sequential"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16", "float64"),
        help="data type of the weights (default: %(default)s)",
    )


def add_model_and_data(parser: argparse.ArgumentParser, split: Split | None = None) -> None:
    """Add the options that `load_model` and `load_corpus` read; with a `split`, also those of a single corpus."""
    add_model(parser)
    parser.add_argument(
        "--tokens", type=positive, help=f"number of tokens of each text corpus (default: {DEFAULT_TOKENS})"
    )
    parser.add_argument(
        "--images",
        type=positive,
        help="number of images of each corpus, if the model is an image classifier; a corpus is then an image dataset "
        "(digits, cifar10, cifar100, imagenet_birds, imagenet_birdless) or a folder with one folder per class, "
        "optionally with the classes to include (digits:3,8) or to exclude (digits:-3,-8) (default: all images)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="read text or images of this machine instead of the Hugging Face Hub"
    )
    if split:
        parser.add_argument(
            "--corpus",
            required=True,
            help="name of a text corpus (code, prose, ...), a text file, or an image dataset (see --images)",
        )
        parser.add_argument(
            "--split", default=split, choices=SPLITS, help="dataset split of the corpus (default: %(default)s)"
        )


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Add the option that `only_estimate` reads."""
    parser.add_argument(
        "--estimate", action="store_true", help="print the estimated time and memory without running the command"
    )


def load_model(arguments: argparse.Namespace) -> Any:
    """Load the model that the arguments name."""
    import torch

    import sp_lens as sp
    from sp_lens import distributed

    prepare_process()
    has_device = arguments.device or arguments.device_map
    return sp.load_model(
        arguments.model,
        device=arguments.device if has_device else distributed.own_device(),
        device_map=arguments.device_map,
        dtype=getattr(torch, arguments.dtype),
    )


def load_corpus(arguments: argparse.Namespace, model: Any, name: str, split: Split) -> Any:
    """Load a text corpus or, for an image classifier, an image dataset with a selection of classes.

    Args:
        arguments: Parsed arguments with the number of tokens or images.
        model: Model that reads the corpus.
        name: Name of a corpus or path of a file. Image datasets can select classes: "digits:3,8" includes two classes,
            and "digits:-3,-8" excludes them.
        split: Dataset split.
    """
    import sp_lens as sp
    from sp_lens.data.images import split_classes
    from sp_lens.models.task import reads_images

    if not reads_images(model):
        if arguments.images is not None:
            raise sp.SpLensError(
                f"--images applies to image classifiers, and {arguments.model} reads text. Use --tokens."
            )
        tokens = arguments.tokens or DEFAULT_TOKENS
        return sp.load_corpus(name, model, tokens=tokens, split=split, offline=arguments.offline)
    if arguments.tokens is not None:
        raise sp.SpLensError(f"--tokens applies to text, and {arguments.model} reads images. Use --images.")
    source, classes = split_classes(name)
    return sp.load_images(source, model, **classes, images=arguments.images, split=split, offline=arguments.offline)


def only_estimate(arguments: argparse.Namespace, estimate: "sp.CostEstimate") -> bool:
    """Print or log the estimated cost of a command; return whether the command ends after it (--estimate)."""
    from sp_lens import distributed

    if arguments.estimate and distributed.is_main():
        print(estimate)
    elif not arguments.estimate:
        logging.getLogger("sp_lens").info("%s", estimate)
    return arguments.estimate


def prepare_process() -> None:
    """Prepare the process for running models: keep freed memory, and hide the messages of transformers."""
    import transformers

    from sp_lens.models.memory import keep_freed_memory

    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def positive(text: str) -> int:
    """Convert the value of an option to an integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
