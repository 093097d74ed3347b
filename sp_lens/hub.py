"""The Hugging Face Hub, read as a stream: what is not needed is not downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from datasets import IterableDataset, load_dataset

from sp_lens.errors import SpLensError


def stream(
    repository: str, split: str, *, configuration: str | None = None, files: str | None = None
) -> IterableDataset:
    """The examples of a split of a dataset, in the Hub's order.

    Args:
        repository: its name on the Hub, or a folder that is laid out as one.
        split: of the Hub's own, "train" as a rule.
        configuration: if the dataset has several.
        files: Parquet files to read past the repository's own loading script, which `datasets` has not run since 4.0.
    """
    if files:
        return cast(IterableDataset, load_dataset("parquet", data_files=files, split=split, streaming=True))
    return cast(IterableDataset, load_dataset(repository, configuration, split=split, streaming=True))


@contextmanager
def reading(repository: str, instead: str) -> Iterator[None]:
    """While a stream is opened and read, whatever goes wrong is an `SpLensError` that says what to do `instead`."""
    try:
        yield
    except SpLensError:
        raise
    except Exception as error:  # each of the libraries on the way to the Hub has errors of its own
        raise SpLensError(
            f"cannot read {repository} from the Hugging Face Hub ({type(error).__name__}: {error}). {instead}"
        ) from error
