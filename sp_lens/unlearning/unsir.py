"""UNSIR: unlearning with noise that maximises the error, followed by repair."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from typing_extensions import Unpack

from sp_lens.data.batching import batches
from sp_lens.data.corpora import Corpora
from sp_lens.data.pixels import pictures
from sp_lens.errors import SpLensError, check_positive
from sp_lens.evaluation.predictions import losses
from sp_lens.models.forward import input_device
from sp_lens.models.task import require_task
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import TrainingKeywords, TrainingOptions, train
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights

# The authors learn the noise of a class with this number of updates of Adam, learning rate and penalty on its square.
NOISE_UPDATES, NOISE_LEARNING_RATE, NOISE_PENALTY = 40, 0.1, 0.1


def unsir(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    noise_images: int = 32,
    copies: int = 20,
    **options: Unpack[TrainingKeywords],
) -> UnlearningRun:
    """Impair an image classifier with noise labelled as the forgotten class, then repair it on retained images.

    Tarun et al. 2023 ("Fast Yet Effective Machine Unlearning", arXiv 2111.08947). For each class in the forget corpus,
    noise images are optimised from random ones to maximise the error of the model for that class. The first step is the
    impair epoch, on copies of the noise with the label of the class and on the retain corpus. The second step is the
    repair epoch, on the retain corpus only, and each further step is another repair epoch. Of the forget corpus only
    the classes are used.

    Differences from their code: all noise images are used (they use as many as an image has channels); both epochs have
    the same optimiser settings (theirs are Adam at 0.02 and at 0.01, for a small ResNet; the comparison of Foster et
    al., arXiv 2308.07707, uses 1e-4 for both); and all given retained images are used, where they use 1,000 per class.

    Args:
        model: Bridge around an image classifier. Its weights are restored afterwards.
        forget: Images of the classes to forget, as `load_images` returns them.
        retain: Images to keep.
        eval_forget: Held-out images of the forget corpus.
        eval_retain: Held-out images of the retain corpus.
        noise_images: Number of noise images that are optimised for each class.
        copies: Number of copies of each noise image in the impair epoch.
        **options: `steps` (2 by default: the impair epoch and one repair epoch), `optimizer`, `learning_rate`, `seed`,
            `batch_tokens` (number of patches) and `progress`, see `TrainingOptions`. There is no option `updates`,
            because a step is one epoch.

    Raises:
        SpLensError: See `gradient_ascent`. Also if the model does not read images.
    """
    if "updates" in options:
        raise SpLensError("unsir has no option updates, because a step is one epoch. Leave it out.")
    options.setdefault("steps", 2)
    training = TrainingOptions(**options)
    check_positive(noise_images=noise_images, copies=copies)
    if require_task(model) != "image":
        raise SpLensError(
            "UNSIR optimises noise images, but this model reads tokens. Pass an image classifier, or use another "
            "method, such as bad_teacher."
        )

    def steps(weights: Weights, _: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        generator = torch.Generator().manual_seed(training.seed)
        retained = [_item(*picture) for picture in pictures(model, corpora["retain"])]
        noise = [
            _item(image, label)
            for label in sorted({picture.label for picture in pictures(model, corpora["forget"])})
            for image in _noise(model, label, noise_images, generator)
        ]
        impairing = retained + noise * copies
        shuffled = [impairing[index] for index in torch.randperm(len(impairing), generator=generator).tolist()]
        yield from islice(epochs(weights, shuffled), 1)
        yield from epochs(weights, retained)

    def epochs(weights: Weights, corpus: list[Any]) -> Iterator[Mapping[str, Any]]:
        """Train with a new optimiser. Each step is one epoch."""
        updates = sum(1 for _ in batches(model, corpus, batch_tokens=training.batch_tokens))
        return train(model, weights, corpus, replace(training, updates=updates))

    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="UNSIR",
        settings={
            "optimizer": training.optimizer,
            "learning_rate": training.learning_rate,
            "noise_images": noise_images,
            "copies": copies,
        },
        options=training,
    )


def _item(pixels: torch.Tensor, label: int) -> dict[str, Any]:
    """Return an image and its class in the form in which a corpus can contain them."""
    return {"pixel_values": pixels, "labels": label}


def _noise(
    model: Any, label: int, count: int, generator: torch.Generator
) -> Float[torch.Tensor, "image channel height width"]:
    """Return images that maximise loss - penalty * |x|^2 for a class: small, and classified as any other class."""
    config, device = model.original_model.config, input_device(model)
    shape = (count, config.num_channels, config.image_size, config.image_size)
    noise = torch.randn(shape, generator=generator).to(device).requires_grad_()
    labels = torch.full((count,), label, device=device)
    optimizer = torch.optim.Adam([noise], lr=NOISE_LEARNING_RATE)
    for _ in range(NOISE_UPDATES):
        with torch.enable_grad():
            logits = model(noise.to(next(model.parameters()).dtype), return_type="logits").float()
            error = losses(logits, labels.to(logits.device)).mean()
            size = noise.square().sum(dim=(1, 2, 3)).mean()
            (noise.grad,) = torch.autograd.grad(NOISE_PENALTY * size - error.to(device), noise)
        optimizer.step()
    return noise.detach().cpu()
