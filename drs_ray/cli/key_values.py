"""The results of `plan`, `status`, `verify`, `audit` and `attack` as names and values for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from drs_ray.certificates.rounding import apart, exact_text, format_down, format_up
from drs_ray.cli.run_display import rate_text
from drs_ray.errors import counted
from drs_ray.report.summary import duration_text

if TYPE_CHECKING:
    from drs_ray.checks.attack.report import AttackReport
    from drs_ray.checks.radii import AuditReport
    from drs_ray.checks.verify import VerifyReport
    from drs_ray.counts.run_record import RunRecord
    from drs_ray.engine.forecast import RunPlan, Size
    from drs_ray.engine.probe import Speed
    from drs_ray.engine.status import Driver, RunStatus

_SET_ASIDE_SHOWN = 5

_DRIVERS: dict[Driver, str] = {
    "none": "none has begun",
    "at work": "at work",
    "silent": "one has not ended, but no part came for longer than usual: killed, or stuck",
    "ended": "none at work",
}


def key_value_table(values: Mapping[str, str]) -> Table:
    """A table with one name and value per line. Brackets in values are not markup."""
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, Text(value))
    return table


def status_values(status: RunStatus) -> dict[str, str]:
    """The state of a run."""
    record = status.record
    later = status.later_samples
    bound = "at least " if later is None else "about " if later else ""
    age, left = status.seconds_since_part, status.seconds_left
    sessions = f"{status.sessions:,} ended, {duration_text(status.session_seconds)} in all" if status.sessions else "-"
    values = {
        "run": record.run_id,
        "started": record.created,
        "forward passes": record.arithmetic,
        "images": f"{len(record.image_ids):,}",
        **_asked(record),
        "units": f"{status.units_done:,} of {status.units:,} ({100 * status.units_done // status.units} %)",
        "noise samples": f"{status.samples_done:,} of {status.samples:,}",
        "driver": _DRIVERS[status.driver],
        "last part": "-" if age is None else f"{duration_text(age)} ago",
        "speed": rate_text(status.samples_per_second),
        "time left": "unknown" if left is None else "none" if left == 0 else f"{bound}{duration_text(left)}",
        "sessions": sessions,
        "reduced": "yes" if status.reduced else "no",
    }
    if status.set_aside:
        more = f", and up to {status.set_aside_unnamed:,} more" if status.set_aside_unnamed else ""
        lines = [f"{key}: {reason}" for key, reason in list(status.set_aside.items())[:_SET_ASIDE_SHOWN]]
        if len(status.set_aside) > len(lines):
            lines.append("...")
        values["set aside"] = "\n".join(
            [f"{counted(len(status.set_aside), 'unit')}{more}; mend the cause, then run certify again", *lines]
        )
    if status.unknown_parts:
        values["unknown parts"] = ", ".join(status.unknown_parts)
    return values


def _asked(record: RunRecord) -> dict[str, str]:
    """The question of a run at a fixed radius; empty for other runs."""
    radius = record.stopping.radius
    return (
        {} if radius is None else {"asks": f"robust at radius {exact_text(radius)} or not; certifies no other radius"}
    )


def plan_values(planned: RunPlan, price: float | None) -> dict[str, str]:
    """A run's estimate; ranges for an adaptive run. price: of a GPU hour, or of a CPU hour without GPUs."""
    record, least, most = planned.record, planned.least, planned.most
    device = "GPU" if planned.gpus else "CPU"

    def each(show: Callable[[Size], str]) -> str:
        low, high = show(least), show(most)
        return low if low == high else f"{low} to {high}"

    engine = record.config.engine
    pieces = (
        "" if engine.samples_per_unit is None else f", at most {counted(engine.samples_per_unit, 'sample')} of each"
    )
    values = {
        "run": record.run_id,
        "images": f"{len(record.image_ids):,}",
        **_asked(record),
        "sub-images": str(record.sub_images),
        "unit": f"{counted(record.images_per_unit, 'image')} of a sub-image{pieces}",
        "units": each(lambda size: f"{size.units:,}"),
        "noise samples": each(lambda size: f"{size.samples:,}"),
        "bytes of parts": each(lambda size: decimal(size.bytes)),
        "device": f"{engine.device} ({record.hardware})",
        "forward passes": record.arithmetic,
        "samples/s per worker": " / ".join(_speed_text(speed) for _, speed in sorted(planned.speeds.items())),
        "workers": f"{planned.workers:,}",
        f"{device} hours": each(lambda size: f"{planned.device_hours(size):.3g}"),
        "expected hours": each(lambda size: f"{planned.hours(size):.3g}"),
    }
    if planned.float32_speeds != planned.speeds:
        hours = each(lambda size: f"{planned.hours(size) * planned.saving:.3g}")
        values["in plain float32"] = f"{hours} hours ({planned.saving:.2g} times as long)"
    if price is not None:
        cost = each(lambda size: f"{planned.device_hours(size) * price:,.2f}")
        values["cost"] = f"{cost} at {price:g} a {device} hour"
    return values


def _speed_text(speed: Speed) -> str:
    alike = speed.most <= 1.1 * speed.least
    return f"{speed.mean:,.0f}" + ("" if alike else f" ({speed.least:,.0f} to {speed.most:,.0f})")


def verify_values(found: VerifyReport, images: int, level: float) -> dict[str, str]:
    """The result of a recount. images: requested images of each unit. level: of the homogeneity test."""
    shifts = [f"{100 * shift:.1f} points in {phase}" for phase, shift in found.shifts.items()]
    drawn = f" (--seed {found.seed})" if found.image is None else ", all that it is in"
    one, any_ = ("a wrong vote", "any wrong vote") if found.exact else ("such a difference", "any such difference")
    met = f"{one} in {100 * found.share_found:.1f} % of the images" if found.share_found else any_
    return {
        "run": found.record.run_id,
        "units": f"{len(found.checked):,} of {found.units:,} stored{drawn}",
        "images": f"{found.images:,} (up to {images} of each unit)" if found.image is None else f"image {found.image}",
        "noise samples": f"{found.samples:,} of {found.samples_stored:,} stored",
        "device": f"{found.device} ({found.hardware})",
        "compared": "exactly" if found.exact else f"by a homogeneity test of level {level:g}",
        **({} if found.exact else {"finds with 95 %": f"vote shares that differ by {', '.join(shifts)}"}),
        **({"meets with 95 %": met} if found.image is None else {}),
        "comparisons": f"{found.comparisons:,}, {len(found.differences):,} differ",
    }


def audit_values(found: AuditReport) -> dict[str, str]:
    """The result of an audit."""
    return {
        "run": found.run_id,
        "rule": f"{found.rule}, alpha {found.alpha:g}",
        "images": f"{found.images:,}, {found.images - found.certified:,} abstain",
        "radii not proved": f"{len(found.too_large):,}",
        "rows that do not fit the counts": f"{len(found.inconsistent):,}",
        "radii far below": f"{len(found.far_below):,}",
        "least slack": "-" if found.closest is None else f"{found.closest:.2g} (proved radius minus stored radius)",
    }


def render_attack(found: AttackReport) -> Table:
    """One row per attacked image: its certified radius, rounded down, and the smallest confirmed norm, rounded up."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("image", "label", "certified", "radius", "found", "norm", "norm / radius"):
        table.add_column(name, justify="right", no_wrap=True)
    columns = ["image_id", "label", "prediction", "radius", "rival", "norm", "limit"]
    for row in found.table.select(columns).to_pylist():
        broken, unsound = row["rival"] >= 0, row["norm"] < row["radius"]
        radius, norm = format_down(row["radius"], 3), format_up(row["norm"], 3)
        ratio = f"{row['norm'] / row['radius']:.3f}"
        if unsound:
            norm, radius = apart(row["norm"], row["radius"], 3)
            ratio = f"{apart(row['norm'] / row['radius'], 1.0, 3)[0]} UNSOUND"
        table.add_row(
            *(str(row[name]) for name in ("image_id", "label", "prediction")),
            radius,
            str(row["rival"]) if broken else "-",
            norm if broken else f"none up to {format_down(row['limit'], 3)}",
            ratio if broken else "-",
            style="bold red" if unsound else None,
        )
    return table


def attack_values(found: AttackReport) -> dict[str, str]:
    """The summary of an attack."""
    broken = int(found.broken.sum())
    ratio, slack = found.median_ratio, found.smallest_slack
    return {
        "run": found.run_id,
        "attacked": f"{counted(found.attacked, 'image')}, {counted(found.skipped, 'more abstains', 'more abstain')} "
        f"(--seed {found.seed}, {found.device})",
        "broken": f"{broken:,}, confirmed by fresh samples; all hold with probability >= 1 - {found.level:g}",
        "median norm / radius": "-" if ratio is None else f"{ratio:.3f}",
        "smallest norm - radius": "-" if slack is None else f"{slack:.4f}",
    }
