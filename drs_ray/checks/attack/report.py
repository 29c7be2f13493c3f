"""The result of an attack: a table of images, its statistics, and the check that no certificate is contradicted."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.arguments import path
from drs_ray.certificates.rounding import apart, shortest_between
from drs_ray.errors import ConfigError, SoundnessError, counted
from drs_ray.storage import Store, open_place_of

_DIGITS = 6


@dataclass(frozen=True, eq=False)
class AttackReport:
    """The images attacked and the smallest confirmed perturbation of each.

    uri, run_id: of the run. table: see `schema.ATTACKS`. skipped: number of drawn images without a certificate, because
    the run abstains. level: upper limit of the probability that any confirmation of the whole attack is wrong. alpha:
    failure probability of one certificate, plus, with lattice noise, the drawing error of the confirming samples. seed,
    device: of the attack. command: repeats the attack.
    """

    uri: str
    run_id: str
    table: pa.Table
    skipped: int
    level: float
    alpha: float
    seed: int
    device: str
    command: str

    @property
    def attacked(self) -> int:
        """Number of images attacked."""
        return len(self.table)

    @property
    def radius(self) -> NDArray[np.float64]:
        """Certified radii [N], pixel units."""
        return np.asarray(self.table["radius"].to_numpy(), np.float64)

    @property
    def norm(self) -> NDArray[np.float64]:
        """Smallest confirmed norms [N], pixel units; inf without a confirmed perturbation."""
        return np.asarray(self.table["norm"].to_numpy(), np.float64)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Whether a perturbation was confirmed [N]."""
        return np.isfinite(self.norm)

    @property
    def median_ratio(self) -> float | None:
        """Median of norm / radius over the images with a confirmed perturbation; None without such images."""
        return float(np.median((self.norm / self.radius)[self.broken])) if self.broken.any() else None

    @property
    def smallest_slack(self) -> float | None:
        """Least norm - radius, pixel units; None if no perturbation was confirmed; negative: unsound."""
        return float((self.norm - self.radius).min()) if self.broken.any() else None

    @property
    def chance(self) -> float:
        """Upper bound of the probability that a sound run and attack contradict each other, at most 1.

        It is a union bound over all drawn images, abstaining ones too: given that an image does not abstain, its
        certificate may be wrong with a higher probability than alpha.
        """
        return min(1.0, (self.attacked + self.skipped) * self.alpha + self.level)

    def check(self) -> None:
        """Raise if a confirmed norm lies below its certified radius.

        Raises:
            SoundnessError: naming the number of such images, the worst, and the command that repeats the attack.
        """
        below = int((self.norm < self.radius).sum())
        if not below:
            return
        worst = self.table.slice(int((self.norm / self.radius).argmin()), 1).to_pylist()[0]
        norm, radius = apart(worst["norm"], worst["radius"], _DIGITS)
        chance = shortest_between(self.chance * (1 - 1e-12), 1.01 * self.chance)  # a sum of floats
        raise SoundnessError(
            f"{self.uri}: NOT SOUND: {below:,} of {counted(self.attacked, 'attacked image')} "
            f"{'has' if below == 1 else 'have'} a confirmed perturbation inside "
            f"their certified radius, worst image {worst['image_id']}: class {worst['prediction']} is certified up to "
            f"l2 norm {radius}, but at {norm} class "
            f"{worst['rival']} wins (votes {worst['rival_votes']} against {worst['prediction_votes']} of "
            f"{worst['samples']:,} per sub-image). A sound run shows this with probability at most {chance:g}. "
            f"Do not use these certificates before it is explained; repeat with `{self.command}`, then check the votes "
            f"with `drs-ray verify {self.uri}` and derive the certificates again with `drs-ray reduce {self.uri}`"
        )

    def write(self, file: str | os.PathLike[str], endpoint_url: str | None = None) -> None:
        """Write the table as Parquet, whole or not at all.

        Args:
            file: path or s3:// URI.
            endpoint_url: endpoint of an S3-compatible server, if not the default.

        Raises:
            ConfigError: `file` is not the name of a file. StoreError: the file cannot be written.
        """
        store, name = _located(file, endpoint_url)
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        store.put(name, sink.getvalue())


def check_output(file: str | os.PathLike[str], endpoint_url: str | None = None) -> None:
    """Check before a long attack that `AttackReport.write` can write the file. Raises as `write`."""
    _located(file, endpoint_url)[0].check_writable()


def _located(file: str | os.PathLike[str], endpoint_url: str | None) -> tuple[Store, str]:
    """The store and the key of a file."""
    file = path("output", file)
    place, _, name = file.rpartition("/")
    if not name or name.startswith(".") or Path(file).is_dir():
        raise ConfigError(f"output must name a Parquet file to write, like {(place or '.')}/attack.parquet, got {file}")
    return open_place_of(file, endpoint_url)
