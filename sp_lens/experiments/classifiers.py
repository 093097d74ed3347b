"""What scores a text for toxicity: a classifier of Hugging Face's, or one that is trained here on labelled tweets."""

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from sp_lens.data.local_tables import table
from sp_lens.data.offline import read_offline, split_of
from sp_lens.errors import SpLensError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# From this score on a text is called toxic.
THRESHOLD = 0.5
_BATCH = 16
_PASSAGES = 1000


@runtime_checkable
class Classifier(Protocol):
    """Anything that scores texts."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What it is, as plain values; its held-out `accuracy` among them where that is known."""
        ...

    def scores(self, texts: Sequence[str]) -> list[float]:
        """How toxic each text is, 0 to 1."""
        ...


@dataclass(frozen=True, eq=False)
class TweetClassifier:
    """TF-IDF of words and logistic regression, trained on labelled tweets, with what it scored on others.

    It knows the coarse words of tweets, and little more: of civil comments that people have called toxic it finds the
    minority that `civil_recall` says. A text without any word that it knows has a score of about 0.3.

    Attributes:
        accuracy: on held-out tweets.
        balanced_accuracy: the mean of the recalls of toxic and of other held-out tweets: five in six are toxic, so
            calling all toxic has an accuracy of 0.83, and a balanced one of 0.5.
        auc: area under the ROC curve on held-out tweets.
        held_out: how many those are.
        civil_recall: share of toxic civil comments that it calls toxic; another domain.
        novel_alarms: share of passages of novels, of 200 characters, that it calls toxic: what that recall costs.
        pipeline: of scikit-learn.
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
        """What it is and what it scored."""
        numbers = {name: value for name, value in vars(self).items() if name != "pipeline"}
        return {"classifier": "TF-IDF and logistic regression on tweets", "label": "hate or offensive", **numbers}

    def scores(self, texts: Sequence[str]) -> list[float]:
        """How toxic each text is, 0 to 1; the classes count the same, though five in six tweets are toxic."""
        return self.pipeline.predict_proba(list(texts))[:, 1].tolist()


def tweet_classifier() -> TweetClassifier:
    """Train a classifier of toxic text on the labelled tweets in the folder `SP_LENS_DATA`, in seconds, offline.

    Toxic is a tweet labelled hate or offensive (Davidson et al. 2017, "Automated Hate Speech Detection and the Problem
    of Offensive Language"); the two classes weigh the same. A tweet belongs to training (60 %) or to the held-out part
    (20 %) by a hash of its cleaned text, so copies and retweets of one are on one side; by the other 20 % it
    was chosen to leave out the most common English words: "you" and "she" are in many a rude tweet, and in novels. The
    other settings are scikit-learn's. Nothing is drawn: the result is always the same.

    Of a text, HTML entities are read ("&amp;"), user names, links and the word RT taken out, and case is dropped.

    Raises:
        SpLensError: without scikit-learn, or where the folder has no tweets, comments or novels.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise SpLensError(f"this needs scikit-learn: pip install 'sp-lens[toxicity]' ({error}).") from error
    tweets, comments = table("tweets-offensive.parquet"), table("civil-comments-toxic.parquet")
    novels = [passage.text[:200] for passage in itertools.islice(read_offline("novels", "evaluate"), _PASSAGES)]
    texts, toxic = tweets["text"], (tweets["label"] != "neither").to_numpy()
    split = np.array([split_of(f"tweets/{cleaned(text)}") for text in texts])
    train, held_out = split == "train", split == "evaluate"
    pipeline = make_pipeline(
        TfidfVectorizer(preprocessor=cleaned, stop_words="english"),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    ).fit(texts[train], toxic[train])

    def scores(texts: Any) -> np.ndarray:
        return pipeline.predict_proba(texts)[:, 1]

    found = scores(texts[held_out])
    return TweetClassifier(
        accuracy=float(accuracy_score(toxic[held_out], found >= THRESHOLD)),
        balanced_accuracy=float(balanced_accuracy_score(toxic[held_out], found >= THRESHOLD)),
        auc=float(roc_auc_score(toxic[held_out], found)),
        held_out=int(held_out.sum()),
        civil_recall=float((scores(comments["text"]) >= THRESHOLD).mean()),
        novel_alarms=float((scores(novels) >= THRESHOLD).mean()),
        pipeline=pipeline,
    )


def cleaned(text: str) -> str:
    """A text as the classifier of tweets reads it.

    Example:
        >>> cleaned("RT @someone: Salt &amp; pepper https://t.co/x")
        ': salt & pepper'
    """
    return " ".join(re.sub(r"https?://\S+|@\w+|\bRT\b", " ", html.unescape(text)).lower().split())


def classifier_of(classifier: Any, label: str) -> Classifier:
    """The classifier that a name, a folder, a pipeline, or a classifier names.

    Raises:
        SpLensError: for a model that can't be loaded or has no trained classes, a label that is none of its classes,
            and for anything else.
    """
    if hasattr(classifier, "scores") and hasattr(classifier, "about"):
        return classifier
    import transformers

    if isinstance(classifier, str | Path):
        classifier = _pipeline(str(classifier))
    if not isinstance(classifier, transformers.TextClassificationPipeline):
        raise SpLensError(
            "a classifier is the name or folder of a Hugging Face model that classifies texts, a pipeline("
            f'"text-classification"), or tweet_classifier(); got {type(classifier).__name__}.'
        )
    labels = list((classifier.model.config.id2label or {}).values())
    if label not in labels:
        raise SpLensError(f"label={label!r} is no class of the classifier: it has {', '.join(map(repr, labels))}.")
    return _Pipeline(classifier, label)


@dataclass(frozen=True, eq=False)
class _Pipeline:
    """A text-classification pipeline of transformers: the score of one of its labels."""

    pipeline: Any
    label: str

    @property
    def about(self) -> dict[str, Any]:
        return {"classifier": self.pipeline.model.config.name_or_path, "label": self.label}

    def scores(self, texts: Sequence[str]) -> list[float]:
        # All classes of each text, cut to what the classifier reads.
        results = self.pipeline(list(texts), top_k=None, truncation=True, max_length=self._longest(), batch_size=_BATCH)
        scores = [next(one["score"] for one in result if one["label"] == self.label) for result in results]
        if stranger := next((score for score in scores if not 0 <= score <= 1), None):
            raise SpLensError(
                f"the classifier scores a text {stranger:.3g}, which is no probability: build the pipeline with "
                'function_to_apply="sigmoid" or "softmax".'
            )
        return scores

    def _longest(self) -> int:
        """How many tokens it reads: a RoBERTa two fewer than it has positions, and not every tokenizer knows."""
        positions = getattr(self.pipeline.model.config, "max_position_embeddings", None) or 514
        return min(self.pipeline.tokenizer.model_max_length, positions - 2)


def _pipeline(name: str) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind = (config.architectures or ["nothing"])[0]
        if not kind.endswith("ForSequenceClassification"):  # transformers would put a random head on it
            raise SpLensError(
                f"{name!r} holds a {kind}, and a classifier of texts was expected (ForSequenceClassification)."
            )
        return transformers.pipeline("text-classification", model=name, trust_remote_code=False)
    except SpLensError:
        raise
    except Exception as error:  # nothing there, of an unknown kind, or damaged: each library has errors of its own
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise SpLensError(
            f"cannot load the classifier {name!r}: expected a local folder, or the name of a Hugging Face model that "
            f"classifies texts while the Hub can be reached; tweet_classifier() needs neither. {reason}"
        ) from error
