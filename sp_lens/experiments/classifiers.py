"""Classifiers that score texts for toxicity: a Hugging Face model, or one that is trained here on labelled tweets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from sp_lens.data.sources.local_tables import clean_tweet, table
from sp_lens.data.sources.offline import read_offline, split_of_tweet
from sp_lens.errors import SpLensError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

THRESHOLD = 0.5  # texts with this score or more are called toxic
_BATCH = 16
_NOVEL_PASSAGES = 1000
_PASSAGE_LENGTH = 200  # characters


@runtime_checkable
class Classifier(Protocol):
    """An object that scores texts for toxicity."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Description of the classifier as plain values, with its held-out `accuracy` if that is known."""
        ...

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the toxicity of each text, from 0 to 1."""
        ...


@dataclass(frozen=True, eq=False)
class TweetClassifier:
    """TF-IDF of words with logistic regression, trained on labelled tweets, and its results on other texts.

    It recognises the coarse words of tweets and little more: `civil_recall` is the minority of toxic civil comments
    that it finds. A text without any word of its vocabulary has a score of about 0.3.

    Attributes:
        accuracy: Accuracy on held-out tweets.
        balanced_accuracy: Mean of the recalls of toxic and of other held-out tweets. Five in six tweets are toxic, so
            calling all of them toxic has an accuracy of 0.83 and a balanced accuracy of 0.5.
        auc: Area under the ROC curve on held-out tweets.
        held_out: Number of held-out tweets.
        civil_recall: Share of toxic civil comments, which are not tweets, that it calls toxic.
        novel_alarms: Share of passages of novels, 200 characters each, that it calls toxic: its false alarms.
        pipeline: The scikit-learn pipeline.
    """

    accuracy: float
    balanced_accuracy: float
    auc: float
    held_out: int
    civil_recall: float
    novel_alarms: float
    pipeline: "Pipeline"

    @property
    def about(self) -> dict[str, Any]:
        """Description of the classifier with its measured accuracies."""
        numbers = {name: value for name, value in vars(self).items() if name != "pipeline"}
        return {"classifier": "TF-IDF and logistic regression on tweets", "label": "hate or offensive", **numbers}

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the toxicity of each text, from 0 to 1, for classes of equal weight."""
        return self.pipeline.predict_proba(list(texts))[:, 1].tolist()


def tweet_classifier() -> TweetClassifier:
    """Train a classifier of toxic text on the labelled tweets in the folder `SP_LENS_DATA`, offline, in seconds.

    A tweet is toxic if it is labelled hate or offensive (Davidson et al. 2017, "Automated Hate Speech Detection and the
    Problem of Offensive Language"). The two classes have equal weight. Training and evaluation use the dataset splits
    of the offline corpora `toxic` and `civil`: it is trained on the tweets of the split "train" (60 %) and measured on
    those of "evaluate" (20 %), so no tweet that a model is collected or evaluated on is in its training data. All
    copies and retweets of a tweet are in one split. Common English words are left out, because "you" and "she" are in
    many rude tweets and in novels. That was decided on the remaining 20 %. All other settings are the defaults of
    scikit-learn. Nothing is random: the result is always the same.

    Texts are cleaned (`clean_tweet`: HTML entities are decoded; user names, links and the retweet mark are removed) and
    converted to lower case.

    Raises:
        SpLensError: If scikit-learn is not installed, or if the folder lacks the tweets, the comments or the novels.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise SpLensError(
            f"tweet_classifier() needs scikit-learn: pip install 'sp_lens[toxicity]' ({error})."
        ) from error
    tweets, comments = table("tweets-offensive.parquet"), table("civil-comments-toxic.parquet")
    documents = itertools.islice(read_offline("novels", "evaluate"), _NOVEL_PASSAGES)
    passages = [document.text[:_PASSAGE_LENGTH] for document in documents]
    texts, toxic = tweets["text"], (tweets["label"] != "neither").to_numpy()
    split = np.array([split_of_tweet(text) for text in texts])
    train, held_out = split == "train", split == "evaluate"
    pipeline = make_pipeline(
        TfidfVectorizer(preprocessor=_cleaned, stop_words="english"),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    ).fit(texts[train], toxic[train])

    def scores(texts: Any) -> np.ndarray:
        return pipeline.predict_proba(texts)[:, 1]

    held_out_scores = scores(texts[held_out])
    return TweetClassifier(
        accuracy=float(accuracy_score(toxic[held_out], held_out_scores >= THRESHOLD)),
        balanced_accuracy=float(balanced_accuracy_score(toxic[held_out], held_out_scores >= THRESHOLD)),
        auc=float(roc_auc_score(toxic[held_out], held_out_scores)),
        held_out=int(held_out.sum()),
        civil_recall=float((scores(comments["text"]) >= THRESHOLD).mean()),
        novel_alarms=float((scores(passages) >= THRESHOLD).mean()),
        pipeline=pipeline,
    )


def _cleaned(text: str) -> str:
    return clean_tweet(text).lower()


def as_classifier(classifier: Any, label: str) -> Classifier:
    """Return a classifier unchanged, or make one from the name or folder of a model, or from a pipeline.

    Args:
        classifier: See `toxicity`.
        label: Label that means toxic.

    Raises:
        SpLensError: If the model cannot be loaded, is not a trained text classifier, or does not have the label, or if
            `classifier` is of another type.
    """
    if hasattr(classifier, "scores") and hasattr(classifier, "about"):
        return classifier
    import transformers

    if isinstance(classifier, str | Path):
        classifier = _load_pipeline(str(classifier))
    if not isinstance(classifier, transformers.TextClassificationPipeline):
        raise SpLensError(
            "classifier must be the name or folder of a Hugging Face text classifier, a "
            'pipeline("text-classification"), or tweet_classifier(); '
            f"got {type(classifier).__name__}."
        )
    labels = list((classifier.model.config.id2label or {}).values())
    if label not in labels:
        raise SpLensError(
            f"label={label!r} is not a label of the classifier: expected one of {', '.join(map(repr, labels))}."
        )
    return _PipelineClassifier(classifier, label)


@dataclass(frozen=True, eq=False)
class _PipelineClassifier:
    """One label of a text-classification pipeline of transformers."""

    pipeline: Any
    label: str

    @property
    def about(self) -> dict[str, Any]:
        return {"classifier": self.pipeline.model.config.name_or_path, "label": self.label}

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of the label for each text, truncated to what the model reads."""
        results = self.pipeline(
            list(texts), top_k=None, truncation=True, max_length=self._max_length(), batch_size=_BATCH
        )
        scores = [next(item["score"] for item in result if item["label"] == self.label) for result in results]
        for score in scores:
            if not 0 <= score <= 1:
                raise SpLensError(
                    f"the classifier returned the score {score:.3g}, which is not a probability: build the pipeline "
                    'with function_to_apply="sigmoid" or "softmax".'
                )
        return scores

    def _max_length(self) -> int:
        """Return the number of tokens that the model reads.

        RoBERTa reads two fewer than it has positions, and not every tokenizer knows the number.
        """
        positions = getattr(self.pipeline.model.config, "max_position_embeddings", None) or 514
        return min(self.pipeline.tokenizer.model_max_length, positions - 2)


def _load_pipeline(name: str) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        architecture = (config.architectures or ["no architecture"])[0]
        if not architecture.endswith("ForSequenceClassification"):  # transformers would add a randomly initialised head
            raise SpLensError(
                f"{name!r} holds {architecture}: expected a text classifier (...ForSequenceClassification)."
            )
        return transformers.pipeline("text-classification", model=name, trust_remote_code=False)
    except SpLensError:
        raise
    except Exception as error:  # missing, damaged or unknown models raise errors of several libraries
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise SpLensError(
            f"cannot load the classifier {name!r}: expected a local folder, or the name of a Hugging Face text "
            f"classifier while the Hub can be reached; tweet_classifier() works without the Hub. {reason}"
        ) from error
