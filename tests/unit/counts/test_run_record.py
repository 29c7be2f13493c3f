"""run.json: what is part of a run's identity, and who may join it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from drs_ray.config import RunConfig, float32, parse_config
from drs_ray.counts.run_record import RunRecord, create_or_join, identity, parse_record, read_record, run_id
from drs_ray.counts.schema import RUN_KEY
from drs_ray.errors import ConfigError, CountsError
from tests.unit.counts.factories import MemoryStore, make_record


def record_of(config: RunConfig, base: RunRecord, **changed: Any) -> RunRecord:
    """The record that a start with this config makes; `changed` are fields of the record itself."""
    values = {"created": "2027-07-07T00:00:00+00:00", "config": config} | changed
    record = base.model_copy(update=values)
    same = identity(record.config, record.dataset, record.image_ids, record.classifier_digests)
    return record.model_copy(update={"run_id": run_id(same)})


def test_round_trip() -> None:
    sigma = float32(0.1 + 0.2)
    store, record = MemoryStore(), make_record(5, 2, sigma=0.1 + 0.2)
    assert create_or_join(store, record) == (record, False)
    assert read_record(store) == record
    assert read_record(store).config.sigmas == (sigma,) * 2  # to the last bit


def test_the_run_id_is_fixed() -> None:
    """Sixteen hex digits of canonical JSON: they must not move between versions or processes."""
    assert run_id({"b": 1, "a": [1, 0.5, "x"]}) == run_id({"a": [1, 0.5, "x"], "b": 1}) == "2976c539ba3cedfc"
    assert len(make_record().run_id) == 16


def test_the_same_run_joins_and_the_stored_sizes_of_units_rule() -> None:
    store, first = MemoryStore(), make_record(5, 2)
    create_or_join(store, first)
    before = dict(store.objects)
    config = first.config.updated("engine", images_per_unit=3, workers=7, address="inline").updated(
        "certificate", alpha=0.05
    )
    joined, was_there = create_or_join(store, record_of(config, first, hardware="another machine"))
    assert was_there
    assert store.objects == before
    assert joined.run_id == first.run_id
    assert joined.created == first.created
    assert joined.hardware == first.hardware
    assert joined.config.engine.images_per_unit == first.config.engine.images_per_unit  # they name the parts
    assert joined.config.engine.workers == 7
    assert joined.config.certificate.alpha == 0.05


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("noise", {"seed": 1}, "noise.seed: 0 there, 1 here"),
        ("noise", {"block": 500}, "noise.block: 1000 there, 500 here"),
        ("engine", {"batch": 64}, "batch: 100 there, 64 here"),
        ("engine", {"device": "cuda"}, "noise.generator: numpy-philox-16+46 there, torch-philox-62 here"),
        ("partition", {"layout": "masked"}, "partition.layout: packed there, masked here"),
        ("dataset", {"split": "train"}, "dataset.split: test there, train here"),
        ("budget", {"selection": 50}, "budget.selection: 100 there, 50 here"),
    ],
)
def test_another_config_is_refused_and_the_keys_are_named(section: str, values: dict[str, Any], named: str) -> None:
    store, first = MemoryStore(), make_record(5, 2)
    create_or_join(store, first)
    before = dict(store.objects)
    with pytest.raises(ConfigError) as error:
        create_or_join(store, record_of(first.config.updated(section, **values), first))
    message = str(error.value)
    assert message.startswith(f"output.uri: memory holds run {first.run_id}, which is not this one (")
    assert named in message
    assert message.endswith("choose another output, restore the config, or delete what is there")
    assert "\n" not in message
    assert store.objects == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"image_ids": (0, 1, 2, 3)}, "image_ids: [0, 1, 2, ...] (5 entries) there, [0, 1, 2, ...] (4 entries) here"),
        ({"image_ids": (0, 1, 2, 3, 9)}, "dataset.image_ids.4: 4 there, 9 here"),
        ({"classifier_digests": ("0" * 64, "f" * 64)}, "classifiers.1.weights_digest: 111111111111... there, ffff"),
    ],
)
def test_other_images_or_weights_are_refused(changed: dict[str, Any], named: str) -> None:
    store, first = MemoryStore(), make_record(5, 2)
    create_or_join(store, first)
    with pytest.raises(ConfigError) as error:
        create_or_join(store, record_of(first.config, first, **changed))
    assert named in str(error.value)


def test_other_pixels_under_the_same_name_are_refused() -> None:
    store = MemoryStore()
    create_or_join(store, make_record(5))
    with pytest.raises(ConfigError, match=r"dataset\.digest: d{12}\.\.\. there, e{12}\.\.\. here"):
        create_or_join(store, make_record(5, digest="e" * 64))


@pytest.mark.parametrize(
    "changed",
    [
        {"pixels": {"range": [0, 255]}},
        {"pixels": {"resize": [28, 28]}},
        {"denoiser": {"architecture": "mine:make"}},
        {"denoiser": {"architecture": "mine:make", "arguments": {"depth": 3}}},
    ],
    ids=str,
)
def test_pixels_and_denoisers_belong_to_the_run(changed: dict[str, Any]) -> None:
    """With the same digest of all weights: neither has to have any."""
    store, first = MemoryStore(), make_record(5, 2)
    create_or_join(store, first)
    data = first.config.model_dump(mode="json")
    data["classifiers"][1] |= changed
    (key,) = changed
    with pytest.raises(ConfigError, match=rf"classifiers.1.{key}: None there, "):
        create_or_join(store, record_of(parse_config(data), first))


def test_classifiers_of_old_keep_their_identity_and_paths_do_not_count() -> None:
    record = make_record(5, 1)
    same = identity(record.config, record.dataset, record.image_ids, record.classifier_digests)
    assert set(same["classifiers"][0]) == {"architecture", "arguments", "sigma", "weights_digest"}
    ids = set()
    for place in ("here", "there"):
        data = record.config.model_dump(mode="json")
        data["classifiers"][0] |= {"denoiser": {"architecture": "dncnn", "checkpoint": f"{place}.pt"}}
        ids.add(record_of(parse_config(data), record).run_id)
    assert len(ids) == 1


def test_the_number_of_an_ensembles_members_belongs_to_the_run_and_their_paths_do_not() -> None:
    store, first = MemoryStore(), make_record(5)
    create_or_join(store, first)
    records = []
    for members in (["b.pt"], ["c.pt"], ["b.pt", "c.pt"]):
        data = first.config.model_dump(mode="json")
        data["classifiers"][0]["members"] = members
        records.append(record_of(parse_config(data), first))
    with pytest.raises(ConfigError, match=r"classifiers.0.members: None there, 1 here"):
        create_or_join(store, records[0])
    assert records[0].run_id == records[1].run_id != records[2].run_id


def of_old(record: RunRecord) -> bytes:
    """run.json as it was before it named its rules."""
    return json.dumps(
        {key: value for key, value in json.loads(record.model_dump_json()).items() if key != "rules"}
    ).encode()


def test_adaptive_stages_that_other_rules_decided_are_not_continued() -> None:
    store, record = MemoryStore("runs/old"), make_record(5, 2)
    adaptive = record_of(record.config.updated("budget", stages=3), record)
    store.put(RUN_KEY, of_old(adaptive))
    assert read_record(store).rules == 1 != adaptive.rules
    with pytest.raises(ConfigError, match="it can be reduced as it is, not continued; choose another output"):
        create_or_join(store, adaptive)
    store.put(RUN_KEY, of_old(record))  # a fixed number of samples: no rule decided anything
    assert create_or_join(store, record)[0].rules == 1


def test_with_lattice_noise_a_certificate_may_fail_for_how_integers_are_drawn() -> None:
    """docs/theory.md 7: alpha + n d TV, n of the last planned stage."""
    made = make_record(5, 2, sigma=0.5)
    gaussian = made.model_copy(update={"config": made.config.updated("noise", law="gaussian")})
    assert gaussian.failure_probability(0.001) == 0.001
    config = gaussian.config.updated("noise", law="lattice").updated(
        "budget", estimation=50_000, planned=100_000, stages=2
    )
    image = gaussian.dataset.model_copy(update={"image_shape": (3, 32, 32)})
    lattice = gaussian.model_copy(update={"config": config, "dataset": image})
    added = lattice.failure_probability(0.001) - 0.001
    assert 7.6e-8 <= added <= 7.75e-8  # the page's 7.7e-8, and no less than (H + 1) 2^-62 n d with H = 1148
    assert added == pytest.approx(100_000 * 3072 * 1149 * 2.0**-62, rel=5e-3)


def test_no_run_there() -> None:
    with pytest.raises(CountsError) as error:
        read_record(MemoryStore("s3://b/nothing"))
    assert str(error.value).startswith("s3://b/nothing: no drs-ray run here (run.json is missing); ")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"schema_version": 1}', b"\xff\xfe"])
def test_not_a_record(data: bytes) -> None:
    with pytest.raises(CountsError) as error:
        parse_record(data, "runs/x")
    assert str(error.value) == "runs/x/run.json: not a drs-ray run record; choose another place or remove it"


def test_a_place_that_holds_something_else_is_not_overwritten() -> None:
    store = MemoryStore()
    store.put("run.json", b"my notes")
    with pytest.raises(CountsError, match="not a drs-ray run record"):
        create_or_join(store, make_record())
    assert store.objects == {"run.json": b"my notes"}


def test_another_version_is_refused() -> None:
    content = json.loads(make_record().model_dump_json()) | {"schema_version": 2}
    with pytest.raises(CountsError, match="schema version 2, this drs-ray reads up to 1; use the newer"):
        parse_record(json.dumps(content).encode(), "runs/x")


def test_a_record_that_was_edited_is_refused() -> None:
    """A larger sigma in run.json would scale every radius, and the parts could not tell."""
    content = json.loads(make_record(sigma=0.5).model_dump_json())
    parse_record(json.dumps(content).encode(), "runs/x")
    content["config"]["classifiers"][0]["sigma"] = 1.0
    with pytest.raises(CountsError, match=r"run.json: was changed after it was written; "):
        parse_record(json.dumps(content).encode(), "runs/x")


class TestExtension:
    """A run goes on to a larger budget exactly where its stages were planned for it."""

    PLANNED: ClassVar = {"estimation": 2000, "stages": 3, "planned": 4000}

    def started(self, budget: dict[str, Any]) -> tuple[MemoryStore, RunRecord]:
        store, plain = MemoryStore(), make_record(5, 2)
        first = record_of(plain.config.updated("budget", **budget), plain)
        create_or_join(store, first)
        return store, first

    def test_to_a_planned_stage(self) -> None:
        store, first = self.started(self.PLANNED)
        assert first.schedule.samples == (1000, 2000)
        larger = record_of(first.config.updated("budget", estimation=4000), first)
        joined, resumed = create_or_join(store, larger)
        assert resumed
        assert joined.schedule.samples == read_record(store).schedule.samples == (1000, 2000, 4000)
        assert joined.schedule.shares[:2] == first.schedule.shares  # what was promised is not spent twice
        assert sum(joined.schedule.shares) <= 1 + 1e-15
        with pytest.raises(ConfigError, match="has 4000 samples, got 2000; a run can only be extended"):
            create_or_join(store, first)

    @pytest.mark.parametrize("budget", [{"estimation": 2000}, {"estimation": 2000, "stages": 3}])
    def test_never_without_a_plan(self, budget: dict[str, Any]) -> None:
        store, first = self.started(budget)
        before = dict(store.objects)
        larger = record_of(first.config.updated("budget", estimation=4000), first)
        with pytest.raises(ConfigError, match=r"has 2000 samples, got 4000; .*planned: None"):
            create_or_join(store, larger)
        assert store.objects == before

    def test_the_extension_of_another_run_is_refused(self) -> None:
        store, _ = self.started(self.PLANNED)
        store.put("extension.json", b'{"run_id": "0123456789abcdef", "estimation": 4000}')
        with pytest.raises(CountsError, match=r"extension\.json: not an extension of this run"):
            read_record(store)
