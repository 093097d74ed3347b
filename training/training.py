"""Train a bundled model: AdamW, linear warm-up and cosine decay, and checkpoints to resume from.

Output: the checkpoint in the folder `work`. The scripts that call `train` save the trained model in their folder
--out.
"""

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
    """Train in float32 (with bfloat16 autocast on a GPU) from the last checkpoint in `work` to step `steps`.

    Args:
        model: A transformers model.
        loss_at: Function of the model and the number of a step that returns the loss. It must depend on nothing else,
            so that a resumed run sees the same data.
        work: Folder of the checkpoint.
        steps: Total number of steps.
        peak_rate: Learning rate after the warm-up.
        weight_decay: Weight decay of the matrices. Biases and norms have none.
        device: Device to train on.

    Returns:
        The trained model in evaluation mode.
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
        torch.manual_seed(SEED + step)  # for dropout
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
    """Return the learning rate of a step: linear warm-up, then cosine decay to `LAST_RATE`."""
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
    """Parse the options of every training script (--work, --out, --steps, --device) and those that `add` adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for token streams and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=steps, help="number of training steps (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="device to train on (default: %(default)s)")
    add(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments
