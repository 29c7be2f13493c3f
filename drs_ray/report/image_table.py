"""The report's table of images, for sorting and searching: one row per image with every run's certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drs_ray.certificates.rounding import format_down
from drs_ray.counts.run_record import RunRecord
from drs_ray.report.summary import SHARE_DIGITS
from drs_ray.results.reduce import RunResult
from drs_ray.results.tables import ABSTAIN

IMAGES_SHOWN = 1000
"""Rows of the table; all images are in certificates.parquet."""
VOTES_SHOWN = 4
"""Largest number of sub-images whose votes are shown; of more, those with the fewest and the most votes are."""


@dataclass(frozen=True)
class Pictures:
    """Small pictures as data: URIs, by image id, and a note about missing pictures, empty if none is missing."""

    uris: Mapping[int, str] = field(default_factory=dict)
    note: str = ""


PictureSource = Callable[[RunRecord, Sequence[int]], Pictures]
"""The pictures of some images of a run. Only `drs_ray.report.thumbnails` reads data sets."""


@dataclass(frozen=True)
class Answer:
    """One run's certificate of an image. kind: correct, wrong or abstains. votes: `votes / n` of sub-images.

    rule: name of the rule without the vote. radius: pixel units; weakest: the smallest share of votes over the
    sub-images; the table is sorted by these two numbers.
    """

    text: str
    kind: str
    radius: float
    radius_text: str
    votes: tuple[str, ...]
    weakest: float
    rule: str


@dataclass(frozen=True)
class ImageRow:
    """An image, its label, one answer per run, its picture ("" without one), and the words that a search looks in."""

    image_id: int
    label: int
    answers: tuple[Answer, ...]
    picture: str
    words: str


@dataclass(frozen=True)
class ImageTable:
    """The first images in the order of the first run.

    slugs: the runs' names in searches. images: number of all images. mixed: for each run, whether its images have
    different rules. note: about pictures.
    """

    slugs: tuple[str, ...]
    rows: tuple[ImageRow, ...]
    images: int
    mixed: tuple[bool, ...]
    note: str

    @property
    def left_out(self) -> int:
        """Images without a row."""
        return self.images - len(self.rows)


def image_table(
    results: Sequence[RunResult], names: Sequence[str], pictures: PictureSource | None, limit: int = IMAGES_SHOWN
) -> ImageTable:
    """The rows of several runs over one test set, matched by image id.

    Args:
        results: at least one run; no comparisons.
        names: their names.
        pictures: source of pictures, or None.
        limit: largest number of rows.
    """
    first = results[0]
    ids = first.certificates["image_id"].to_numpy()[:limit]
    labels = first.certificates["label"].to_numpy()[:limit]
    found = Pictures() if pictures is None else pictures(first.record, [int(image_id) for image_id in ids])
    columns = [list(_answers(result, ids)) for result in results]
    slugs = ["-".join(name.lower().split()) for name in names]
    rows = tuple(
        ImageRow(
            image_id=int(image_id),
            label=int(label),
            answers=tuple(answers),
            picture=found.uris.get(int(image_id), ""),
            words=_words(int(image_id), int(label), slugs, answers),
        )
        for image_id, label, answers in zip(ids, labels, zip(*columns, strict=True), strict=True)
    )
    mixed = tuple(len(result.certificates["rule"].unique()) > 1 for result in results)
    return ImageTable(tuple(slugs), rows, first.images, mixed, found.note)


def _answers(result: RunResult, ids: np.typing.NDArray[np.int64]) -> Iterator[Answer]:
    mine = result.certificates["image_id"].to_numpy()
    order = np.argsort(mine, kind="stable")
    where = order[np.searchsorted(mine, ids, sorter=order)]
    names = ["label", "prediction", "correct", "radius", "selected_class", "rule", "class_votes", "estimation_samples"]
    for row in result.certificates.select(names).take(where).to_pylist():
        abstains = row["prediction"] == ABSTAIN
        votes = list(zip(row["class_votes"], row["estimation_samples"], strict=True))
        yield Answer(
            text=f"abstains (selected {row['selected_class']})" if abstains else str(row["prediction"]),
            kind="abstains" if abstains else "correct" if row["correct"] else "wrong",
            radius=row["radius"],
            radius_text="–" if abstains else format_down(row["radius"], SHARE_DIGITS),
            votes=tuple(_votes_text(votes)),
            weakest=min(own / samples for own, samples in votes),
            rule=row["rule"].partition(" ")[2],
        )


def _votes_text(votes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """(votes, samples) of each sub-image as text."""
    if len(votes) <= VOTES_SHOWN:
        yield from (f"{own:,} / {samples:,}" for own, samples in votes)
        return
    ordered = sorted(votes, key=lambda each: each[0] / each[1])
    for name, (own, samples) in (("least", ordered[0]), ("most", ordered[-1])):
        yield f"{name} {own:,} / {samples:,}"


def _words(image_id: int, label: int, slugs: Sequence[str], answers: Sequence[Answer]) -> str:
    """The words by which a search finds the row: plain words, and `run:word` with the name of a run."""
    words = [str(image_id), f"image:{image_id}", f"label:{label}"]
    kinds = {answer.kind for answer in answers}
    words += sorted(kinds)
    if len(kinds) > 1:
        words.append("differ")
    if len(answers) > 1:
        words += [f"{slug}:{answer.kind}" for slug, answer in zip(slugs, answers, strict=True)]
    words += sorted({f"prediction:{answer.text}" for answer in answers if answer.kind != "abstains"})
    return " ".join(words)
