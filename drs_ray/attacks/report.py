"""What an attack found: a table of images, its figures, and the check that no certificate is contradicted."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.errors import SoundnessError
from drs_ray.results.rounding import format_down, format_up
from drs_ray.results.store import open_store

_DIGITS = 6


@dataclass(frozen=True, eq=False)
class AttackReport:
    """The images attacked and the smallest confirmed perturbation of each.

    uri, run_id: of the run. table: see `schema.ATTACKS`. skipped: images drawn on which the run abstains: they have no
    certificate to attack. level: chance that any confirmation of the whole attack is wrong. alpha: failure
    probability of one certificate. seed, device: of the attack. command: repeats it.
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
        """Smallest confirmed norms [N], pixel units; inf where there is none."""
        return np.asarray(self.table["norm"].to_numpy(), np.float64)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Where a perturbation was confirmed [N]."""
        return np.isfinite(self.norm)

    @property
    def median_ratio(self) -> float | None:
        """Median of norm / radius over the images with a confirmed perturbation, None where there is none."""
        return float(np.median((self.norm / self.radius)[self.broken])) if self.broken.any() else None

    @property
    def smallest_slack(self) -> float | None:
        """Least norm - radius, pixel units, None where no perturbation was confirmed; negative: unsound."""
        return float((self.norm - self.radius).min()) if self.broken.any() else None

    @property
    def chance(self) -> float:
        """Largest probability with which a sound run and attack contradict each other: union bound, at most 1."""
        return min(1.0, self.attacked * self.alpha + self.level)

    def check(self) -> None:
        """Raise if a confirmed norm lies below its certified radius.

        Raises:
            SoundnessError: naming how many, the worst, and the command that repeats the attack.
        """
        ratio = self.norm / self.radius
        below = int((ratio < 1).sum())
        if not below:
            return
        worst = self.table.slice(int(ratio.argmin()), 1).to_pylist()[0]
        raise SoundnessError(
            f"{self.uri}: NOT SOUND: {below} of {self.attacked} attacked images have a confirmed perturbation inside "
            f"their certified radius, worst image {worst['image_id']}: class {worst['prediction']} is certified up to "
            f"l2 norm {format_down(worst['radius'], _DIGITS)}, but at {format_up(worst['norm'], _DIGITS)} class "
            f"{worst['rival']} wins (votes {worst['rival_votes']} against {worst['prediction_votes']} of "
            f"{worst['samples']:,} per sub-image). A sound run shows this with probability at most {self.chance:.3g}. "
            f"Do not use these certificates before it is explained; repeat with `{self.command}`, then check the votes "
            f"with `drs-ray verify {self.uri}` and derive the certificates again with `drs-ray reduce {self.uri}`"
        )

    def write(self, file: str, endpoint_url: str | None = None) -> None:
        """Write the table as Parquet, whole or not at all.

        Args:
            file: path or s3:// URI.
            endpoint_url: endpoint of an S3-compatible server, if not the default.

        Raises:
            StoreError: the place cannot be written.
        """
        place, _, name = file.rpartition("/")
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        open_store(place or ("/" if file.startswith("/") else "."), endpoint_url).put(name, sink.getvalue())
