"""The loop that trains the bundled models: AdamW, a warm-up and a cosine, checkpoints to go on from."""

import argparse
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SEED = 0
WARM_UP = 100  # steps
LAST_RATE = 1e-4
CHECKPOINT_EVERY = 100


def train(
    model: Any,
    loss_at: Callable[[Any, int], torch.Tensor],
    work: Path,
    *,
    steps: int,
    peak_rate: float,
    weight_decay: float = 0.1,
    device: str = "cpu",
) -> Any:
    """Train in float32 (on a GPU: bfloat16 autocast) from the last checkpoint in `work` to `steps`.

    Args:
        model: a transformers model.
        loss_at: the model and the number of a step -> its loss. A function of these alone, so that a resumed
            run sees the same data.
        work: folder for the checkpoint.
        steps: how many in all.
        peak_rate: the learning rate after the warm-up.
        weight_decay: of matrices; biases and norms have none.
        device: where to.
    """
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95))
    first = _resume(model, optimizer, work / "checkpoint")
    bar = tqdm(range(first, steps), initial=first, total=steps, desc="training")
    started = time.monotonic()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps, peak_rate)
        torch.manual_seed(SEED + step)  # of dropout
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            loss = loss_at(model, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            _checkpoint(model, optimizer, work / "checkpoint", step + 1)
            logger.info("step %d: loss %.3f, %.0f s", step + 1, loss.item(), time.monotonic() - started)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to the last rate."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (peak - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def _checkpoint(model: Any, optimizer: torch.optim.AdamW, folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            state[f"{key}.{name}"] = optimizer.state[parameter][key]
    temporary = folder / "state.tmp"
    save_file(state, temporary, metadata={"step": str(step)})
    temporary.replace(folder / "state.safetensors")


def _resume(model: Any, optimizer: torch.optim.AdamW, folder: Path) -> int:
    file = folder / "state.safetensors"
    if not file.exists():
        return 0
    state = load_file(file, device=str(model.device))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[f"model.{name}"])
            optimizer.state[parameter] = {key: state[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
    return int(next(iter(optimizer.state.values()))["step"])


def arguments_of(
    doc: str | None, *, steps: int, add: Callable[[argparse.ArgumentParser], None] = lambda _: None
) -> argparse.Namespace:
    """The command line that every training script has, --work, --out, --steps, --device, and what `add` adds to it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is read and for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments
