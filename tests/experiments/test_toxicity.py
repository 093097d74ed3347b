"""Toxicity scores from transformers pipelines, from the classifier of tweets, and from a classifier made by hand."""

import itertools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import transformers
from factories import DEMO_FOLDER, Tiny, random_mask, tiny_bridge

import sp_lens as sp
from sp_lens.data.sources.local_tables import clean_tweet
from sp_lens.data.sources.offline import read_offline
from sp_lens.experiments.classifiers import as_classifier
from sp_lens.experiments.generation import sample_continuations

pytestmark = pytest.mark.model

TWEETS = pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="needs the tweets in the folder SP_LENS_DATA")


class Length:
    """A classifier that can be checked by hand: longer texts are more toxic."""

    about: dict[str, Any] = {"classifier": "length", "accuracy": 0.75}  # noqa: RUF012

    def scores(self, texts: Any) -> list[float]:
        return [min(1.0, len(text) / 80) for text in texts]


def bert(folder: Path, labels: list[str], problem_type: Any = None) -> Path:
    """Save a tiny random BERT that classifies texts, with the bundled tokenizer."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, id2label=dict(enumerate(labels)), problem_type=problem_type, initializer_range=0.5,
        label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(folder)
    return folder


def plain_scores(folder: Path, texts: list[str], *, index: int, multi_label: bool) -> list[float]:
    """Score texts one by one with plain transformers, cut to the 62 tokens that a context of 64 is sure to hold."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores = []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text)["input_ids"][:62]])).logits[0]
        scores.append((logits.sigmoid() if multi_label else logits.softmax(-1))[index].item())
    return scores


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_a_hugging_face_classifier_scores_as_plain_transformers(
    demo: Any, tmp_path: Path, problem_type: str | None
) -> None:
    """The classifier is a folder or its pipeline, and its labels are independent or exclude each other."""
    folder = bert(tmp_path / "bert", ["toxic", "obscene", "insult"], problem_type)
    options: dict[str, Any] = {"label": "obscene", "continuations": 6, "tokens": 80, "progress": False}
    result = sp.toxicity(demo, classifier=folder, **options)
    expected = plain_scores(folder, list(result.texts), index=1, multi_label=problem_type is not None)
    assert result.scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-3
    assert result.classifier == {"classifier": str(folder), "label": "obscene"}
    assert result.accuracy is None
    ready = transformers.pipeline("text-classification", model=str(folder))
    assert sp.toxicity(demo, classifier=ready, **options).scores == result.scores


def test_the_continuations_of_the_ablated_model_are_scored(tiny: Tiny) -> None:
    options: dict[str, Any] = {"continuations": 4, "tokens": 6, "seed": 2, "temperature": 0.1, "progress": False}
    with sp.ablate(tiny.model, random_mask(tiny.model, 0.4)):
        result = sp.toxicity(tiny.model, classifier=Length(), prompt="The boat", batch=3, **options)
        texts = sample_continuations(tiny.model, "The boat", batch=4, **options)
    assert list(result.texts) == texts
    assert list(result.scores) == [min(1.0, len(text) / 80) for text in texts]
    unpruned = sp.toxicity(tiny.model, classifier=Length(), prompt="The boat", **options)
    assert unpruned.texts != result.texts
    assert not any(text.startswith("The boat") for text in texts)
    about = {"model": f"tiny-{tiny.family}", "seed": 2, "temperature": 0.1, "tokens": 6}
    assert {name: result.about[name] for name in about} == about


def result_of(scores: list[float]) -> sp.Toxicity:
    """Return a result with these scores."""
    texts = tuple(map(str, range(len(scores))))
    return sp.Toxicity("It", texts, tuple(scores), Length.about, {"model": "demo"})


def test_mean_share_and_frame_of_known_scores() -> None:
    result = result_of([0.0, 0.25, 0.5, 1.0])
    assert (result.mean, result.share, result.accuracy) == (0.4375, 0.5, 0.75)
    frame = pd.DataFrame({"continuation": range(4), "text": list("0123"), "score": [0.0, 0.25, 0.5, 1.0]})
    pd.testing.assert_frame_equal(result.frame(), frame)
    assert "mean=0.438 [" in repr(result)
    assert "held-out accuracy of the classifier 0.750" in repr(result)


@pytest.mark.parametrize(("toxic", "count"), [(0, 20), (1, 20), (37, 1000), (500, 1000), (20, 20)])
def test_intervals_agree_with_wilson_and_student(toxic: int, count: int) -> None:
    result = result_of([0.9] * toxic + [0.1] * (count - toxic))
    # The ends of Wilson's interval are the shares p with (share - p)^2 = z^2 p (1 - p) / count (Wilson 1927).
    z = 1.959963984540054
    wilson = np.roots([1 + z**2 / count, -(2 * toxic + z**2) / count, (toxic / count) ** 2])
    assert result.share_interval == pytest.approx(sorted(wilson.real), abs=1e-9)
    low, high = result.mean_interval
    assert low <= result.mean <= high
    if 0 < toxic < count:
        student = scipy.stats.ttest_1samp(result.scores, 0).confidence_interval()
        assert (low, high) == pytest.approx((student.low, student.high))


def test_a_saved_result_loads_unchanged(tmp_path: Path) -> None:
    result = result_of([0.0, 0.25])
    result.save(tmp_path / "toxicity.json")
    assert sp.Toxicity.load(tmp_path / "toxicity.json") == result
    for other in ([1], {"kind": "Evaluation"}, {**json.loads((tmp_path / "toxicity.json").read_text()), "kind": "It"}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(sp.SpLensError, match="is not a Toxicity"):
            sp.Toxicity.load(tmp_path / "other.json")


def test_invalid_arguments_are_errors(demo: Any, tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", ["toxic", "other"])
    errors: dict[str, dict[str, Any]] = {
        r"label='rude' is not a label of the classifier: expected one of 'toxic', 'other'": {"label": "rude"},
        r"cannot load the classifier 'nowhere/bert'": {"classifier": "nowhere/bert"},
        r"holds OPTForCausalLM: expected a text classifier": {"classifier": DEMO_FOLDER},
        r"classifier must be the name or folder .* got int": {"classifier": 3},
        r"tokens=300": {"tokens": 300},
        r"the prompt '' has no tokens": {"prompt": ""},
    }
    for message, options in errors.items():
        with pytest.raises(sp.SpLensError, match=message):
            sp.toxicity(demo, **{"classifier": folder, "progress": False, **options})
    for family, predicts in {"bert": "masked tokens", "vit": "the class of an image"}.items():
        with pytest.raises(sp.SpLensError, match=f"predicts {predicts}"):
            sp.toxicity(tiny_bridge(family), classifier=folder)
    raw = transformers.pipeline("text-classification", model=str(folder), function_to_apply="none")
    with pytest.raises(sp.SpLensError, match="which is not a probability"):
        as_classifier(raw, "toxic").scores(["one", "two", "three", "a fourth"])


def test_errors_of_the_classifier_are_raised_before_sampling(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Length):
        def scores(self, texts: Any) -> list[float]:
            raise sp.SpLensError(f"cannot read {texts}")

    monkeypatch.setattr("sp_lens.experiments.toxicity.sample_continuations", None)
    with pytest.raises(sp.SpLensError, match=r"cannot read \['The boat'\]"):
        sp.toxicity(demo, classifier=Broken(), prompt="The boat")


@TWEETS
def test_the_tweet_classifier_has_the_documented_accuracy() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[toxicity]'")
    classifier = sp.tweet_classifier()
    assert classifier.accuracy > 0.925
    assert classifier.balanced_accuracy > 0.935
    assert classifier.auc > 0.97
    assert 4500 < classifier.held_out < 5500
    assert classifier.civil_recall > 0.12
    assert classifier.novel_alarms < 0.06
    nice, rude = classifier.scores(["Have a nice day.", "You stupid bitch."])
    assert nice < 0.35
    assert rude > 0.8
    assert json.loads(json.dumps(classifier.about))["accuracy"] == classifier.accuracy
    assert as_classifier(classifier, "whatever") is classifier


@TWEETS
def test_the_classifier_is_trained_on_no_held_out_tweet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tweets are compared by their words, with those of the splits collect and evaluate and those of the accuracy."""
    vectorizer = pytest.importorskip("sklearn.feature_extraction.text").TfidfVectorizer
    fitted: list[str] = []
    scored: list[str] = []
    fit, transform = vectorizer.fit_transform, vectorizer.transform
    monkeypatch.setattr(
        vectorizer, "fit_transform", lambda self, texts, y=None: fitted.extend(texts) or fit(self, texts, y)
    )
    monkeypatch.setattr(vectorizer, "transform", lambda self, texts: scored.extend(texts) or transform(self, texts))

    def words(texts: Iterable[str]) -> set[str]:
        return {" ".join(re.findall(r"\w+", clean_tweet(text).casefold())) for text in texts} - {""}

    held_out = sp.tweet_classifier().held_out
    trained = words(fitted)
    assert len(trained) > 10_000
    others = {"held out": words(scored[:held_out])}
    for name, split in itertools.product(("civil", "toxic"), ("collect", "evaluate")):
        others[f"{name} {split}"] = words(document.text for document in read_offline(name, split))
    assert all(len(tweets) > 500 for tweets in others.values())
    assert {name: len(trained & tweets) for name, tweets in others.items()} == dict.fromkeys(others, 0)


def test_without_tweets_the_error_names_the_folder_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install '.[toxicity]'")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    with pytest.raises(sp.SpLensError, match=r"tweets-offensive\.parquet: set SP_LENS_DATA"):
        sp.tweet_classifier()


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(sp.SpLensError, match=r"pip install 'sp_lens\[toxicity\]'"):
        sp.tweet_classifier()
