"""Read the training text of the bundled language models, as one stream of tokens for each source.

The sources are the train split of the offline text (`sp_lens.data.sources.offline`), which includes novels from the
folder that `SP_LENS_DATA` names, and the Python sources of installed packages. Output: `prepare` writes the tokenizer
and the streams to the folder WORK of the training scripts.
"""

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from sp_lens.data.sources.docstrings import without_docstrings
from sp_lens.data.sources.offline import read_offline, split_of
from sp_lens.data.sources.tables import Document

logger = logging.getLogger(__name__)

VOCABULARY = 4096
PAD, EOS = 0, 1  # the first two ids of the vocabulary; EOS is also BOS, as in OPT
CONTEXT = 256

# Share of the training rows from each source.
MIXTURE = {"python": 0.16, "other_python": 0.19, "non_python": 0.20, "prose": 0.20, "novels": 0.25}
# Packages whose Python sources are read in addition to the standard library. None contains a copy of it.
OTHER_PYTHON = ("torch", "transformers", "numpy", "pandas", "sympy", "networkx")


def training_documents(source: str) -> Iterator[str]:
    """Return the training texts of one source. Prose omits paragraphs that also occur in held-out documents."""
    if source == "other_python":
        yield from _other_python()
    elif source == "prose":
        held_out = {
            p for split in ("collect", "evaluate") for d in read_offline("prose", split) for p in _paragraphs(d)
        }
        for document in read_offline("prose", "train"):
            yield "\n\n".join(p for p in _paragraphs(document) if p not in held_out)
    else:
        yield from (document.text for document in read_offline(source, "train"))


def _paragraphs(document: Document) -> list[str]:
    return document.text.split("\n\n")


def _other_python() -> Iterator[str]:
    for package in OTHER_PYTHON:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            name = f"other_python/{package}/{path.relative_to(root).as_posix()}"
            if "tests" not in path.parts and split_of(name) == "train":
                yield without_docstrings(path.read_text("utf-8", errors="ignore"))


def train_tokenizer(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on a sample of all sources. Like OPT's, it puts one `</s>` before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = (text for source in MIXTURE for text in texts[source][:: max(1, len(texts[source]) // 1500)])
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", model_max_length=CONTEXT
    )


def prepare(work: Path) -> dict[str, np.ndarray]:
    """Return the token stream of each source. They are read once and stored in `work` as uint16 arrays."""
    files = {source: work / f"{source}.npy" for source in MIXTURE}
    if not all(file.exists() for file in files.values()):
        texts = {source: list(training_documents(source)) for source in tqdm(MIXTURE, desc="reading")}
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(work / "tokenizer")
        for source, file in files.items():
            rows = tokenizer(texts[source], add_special_tokens=False, verbose=False)["input_ids"]
            stream = np.concatenate([np.array([*row, EOS], dtype=np.uint16) for row in rows])
            np.save(file, stream)
            logger.info("%s: %d documents, %d tokens", source, len(rows), len(stream))
    return {source: np.load(file, mmap_mode="r") for source, file in files.items()}


def windows(generator: np.random.Generator, streams: dict[str, np.ndarray], *, rows: int, tokens: int) -> np.ndarray:
    """Return random stretches of the streams, mixed in the proportions of `MIXTURE`: [row token]."""
    sources = generator.choice(list(MIXTURE), size=rows, p=list(MIXTURE.values()))
    starts = [generator.integers(0, len(streams[source]) - tokens - 1) for source in sources]
    stretches = [streams[source][start : start + tokens] for source, start in zip(sources, starts, strict=True)]
    return np.array(stretches, dtype=np.int64)
