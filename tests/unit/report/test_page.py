import base64
import dataclasses
import hashlib
import html
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

import drs_ray
from drs_ray.cli import app
from drs_ray.config import parse_config
from drs_ray.counts.run_record import RunRecord, create_or_join, with_engine
from drs_ray.errors import ConfigError
from drs_ray.report.columns import columns_of, rule_gains
from drs_ray.report.comparison import envelope, paired_differences
from drs_ray.report.distributions import p_lower_histograms, per_class, radius_edges, radius_histogram
from drs_ray.report.image_table import IMAGES_SHOWN, Pictures, image_table
from drs_ray.report.page import REPORT_KEY, render_report, write_report
from drs_ray.report.run_details import CLASSES_SHOWN
from drs_ray.report.summary import summarise
from drs_ray.results.reduce import reduce_history, reduce_run
from drs_ray.storage import LocalStore
from tests.unit.counts.factories import (
    PART_KEY,
    RADII,
    MemoryStore,
    make_history,
    make_part,
    make_record,
    make_result,
    with_radii,
)


def test_writes_the_page_and_the_figures() -> None:
    store = MemoryStore()
    runs = [make_result(30, 1, uri="runs/rs"), make_result(30, 2, uri="runs/drs")]
    assert write_report(runs, store) == ["report.html", "certified_accuracy.svg", "certified_accuracy.png"]
    assert set(store.objects) == {"report.html", "certified_accuracy.svg", "certified_accuracy.png"}
    assert store.objects[REPORT_KEY].decode() == render_report(runs)


def test_page_is_well_formed_and_fetches_nothing() -> None:
    page = render_report([make_result(30, 1, uri="runs/rs"), make_result(30, 2, uri="runs/drs")])
    parser = _Checker()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not parser.tags & {"link", "iframe", "object", "embed", "img", "base"}
    assert len(parser.ids) == len(set(parser.ids))
    assert all(value.startswith("#") for value in parser.links)
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert {reference[1:] for reference in parser.links} <= set(parser.ids)


def test_page_allows_its_own_script_alone() -> None:
    page = render_report([make_result(10)])
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert html.unescape(policy) == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )
    assert not re.search(r"\son\w+=", page)  # no handlers in attributes: the policy would not run them


def test_page_with_convergence_and_comparison_is_well_formed_and_says_what_is_no_certificate() -> None:
    record = _sized(make_record(40, 2, estimation=800, uri="runs/drs"), 1000)
    history = make_history(record, [100, 200, 400, 800])
    run = reduce_history(MemoryStore("runs/drs"), history, record, record.config.certificate)
    columns = columns_of(run, history, compare_rules=True)
    page = render_report(columns)
    parser = _Checker()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 2
    assert len(parser.ids) == len(set(parser.ids))
    assert {reference[1:] for reference in parser.links} <= set(parser.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parser.ids)
    text = _text(page)
    assert "1 run on 40 of 1,000 images of mnist5k (test)" in text
    assert "drs, p_A Bonferroni : not a run but a comparison" in text
    assert "These are not certificates" in text
    assert rule_gains(columns.results)[0].text in text
    ((_, points),) = columns.convergence
    for point in points:
        values = " ".join(row.accuracy_text for row in point.at_radii([row["radius"] for row in run.curve.to_pylist()]))
        assert f"{point.samples:,} {values} {point.acr_text} {point.abstention_text}" in text
    assert "Pooled: where no selection vote went against the class" in text
    for rule, images in summarise(run, "drs").image_rules:
        assert f"{rule} ({images} images)" in text
    assert text.count(run.record.run_id) == 1  # a comparison has no provenance of its own
    assert page.count('scope="col" class="first" data-sort>prediction') == 1  # nor a place in the table of images


def test_page_without_counts_has_no_convergence() -> None:
    page = render_report([make_result(20)])
    assert page.count("<svg") == 1
    assert "With fewer samples" not in page
    assert "comparison" not in page


def test_library_and_command_read_the_counts_and_compare_rules(tmp_path: Path) -> None:
    record = make_record(12, 2, estimation=800, uri=str(tmp_path / "run"))
    store = LocalStore(tmp_path / "run")
    create_or_join(store, record)
    store.put(PART_KEY, make_part(record, [400, 800]))
    run = reduce_run(store, record, record.config.certificate)
    stored = store.get("certificates.parquet")
    drs_ray.write_report([run], str(tmp_path / "library"), compare_rules=True)
    arguments = ["report", str(tmp_path / "run"), "--output", str(tmp_path / "command")]
    done = CliRunner().invoke(app, [*arguments, "--compare-rules"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "library" / "report.html").read_text()
    assert page == (tmp_path / "command" / "report.html").read_text()
    assert "With fewer samples" in page
    for said in ("run, p_A Bonferroni", "a measured gain of", "not certificates"):
        assert said in page
        assert said in " ".join(done.output.split())
    assert store.get("certificates.parquet") == stored
    assert "measured gain" not in CliRunner().invoke(app, arguments).output


def test_page_says_what_an_adaptive_run_saved() -> None:
    record = make_record(30, 1, estimation=800)
    record = record.model_copy(update={"config": record.config.updated("budget", stages=2, estimation=800)})
    history = make_history(record, [400, 800])
    run = reduce_history(MemoryStore(), history, record, record.config.certificate)
    text = _text(render_report(columns_of(run, history, compare_rules=False)))
    assert "100 + up to 800 noisy copies" in text
    assert "400 to 800 estimation, in 2 stages" in text
    assert f"{run.samples:,} noise samples were drawn" in text
    assert "neither the stages nor that stopping are paid for" in text
    assert "noise samples were drawn" not in _text(render_report([make_result(30)]))


def test_page_shows_classes_and_spread() -> None:
    run = make_result(80, hardest=0.1)
    text = _text(render_report([run]))
    for row in per_class(run):
        cells = " ".join(f"{cell.accuracy_text} {cell.interval_text}" for cell in row.at_radii([0.25, 0.5, 0.75])[1:])
        assert f"{row.label} {row.images} {row.accuracy_text} {cells} {row.acr_text} {row.abstained}" in text
    (histogram,) = p_lower_histograms(run)
    assert f"0.95 – 0.99 {histogram.counts[6]} 0.99 – 0.999 {histogram.counts[7]}" in text
    assert f"abstains {radius_histogram(run, radius_edges([run])).abstained} " in text


def test_many_classes_are_cut_to_those_that_do_worst() -> None:
    run = make_result(100, hardest=0.1)
    table = run.certificates
    at = table.schema.get_field_index("label")
    table = table.set_column(at, table.schema.field(at), pa.array(range(100), pa.int32()))
    many = dataclasses.replace(run, certificates=table)
    text = _text(render_report([many]))
    assert f"the {CLASSES_SHOWN} classes with the smallest ACR, of 100" in text


def test_page_says_what_was_certified_and_how_far_it_holds() -> None:
    run = make_result(40, 2, sigma=0.7071067811865476, uri="runs/drs", alpha=0.01)
    text = _text(render_report([dataclasses.replace(run, seconds=754.0)]))
    assert "40 images of mnist5k (test), certified against l2 perturbations" in text
    assert "dual randomized smoothing (DRS: K = 2 sub-images with independent noise)" in text
    assert "alpha = 0.01 per image" in text
    assert "sigma 0.7071" in text
    assert "100 + 1,000 noisy copies" in text
    assert "changes the smoothed classifier's answer" in text
    assert "exact integer Gaussian" in text
    assert "float32 Gaussian" not in text
    assert "Nothing about other norms" in text
    assert "12 min 34 s" in text
    assert "drs-ray reduce runs/drs --alpha 0.01" in text
    for part in (run.record.run_id, "d" * 64, "0" * 64, "1" * 64, "2 CPU cores", "numpy 2.0"):
        assert part in text
    for row in run.curve.to_pylist():
        assert f"{row['certified_accuracy']:.3f}" in text  # of 40 images: three decimals are exact


def test_float32_noise_is_said_to_be_what_it_is() -> None:
    run = make_result(10)
    record = run.record.model_copy(update={"config": run.record.config.updated("noise", law="gaussian")})
    text = _text(render_report([dataclasses.replace(run, record=record)]))
    assert "float32 Gaussian" in text
    assert "exact integer Gaussian" not in text


def test_a_run_in_bfloat16_is_said_to_be_about_other_classifiers() -> None:
    run = make_result(10)
    record = with_engine(run.record, precision="bfloat16", compile=True)
    text = _text(render_report([dataclasses.replace(run, record=record)]))
    assert "The classifiers that voted compute in bfloat16, compiled" in text
    assert "The classifiers that voted compute" not in _text(render_report([run]))


def test_table_of_images_rounds_down_and_names_what_is_left_out() -> None:
    images = IMAGES_SHOWN + 50
    run = with_radii(make_result(images), [0.4999] * (images - 1) + [0.0])
    text = _text(render_report([run]))
    assert f"The first {IMAGES_SHOWN:,} of {images:,} images" in text
    assert "50 more images" in text
    assert "runs/demo/certificates.parquet" in text
    assert "0.499" in text
    assert "0.500" not in text


def test_images_of_several_runs_are_matched_by_id_and_have_their_pictures() -> None:
    first, second = make_result(30, 1, uri="runs/rs", hardest=0.2), make_result(30, 2, uri="runs/my drs", hardest=0.2)
    backwards = second.certificates.take(list(range(29, -1, -1)))
    second = dataclasses.replace(second, certificates=backwards)
    asked: list[object] = []

    def pictures(record: RunRecord, image_ids: Sequence[int]) -> Pictures:
        asked.append((record, list(image_ids)))
        return Pictures({3: "data:image/png;base64,AAAA"}, "Pictures: of one image only")

    page = render_report([first, second], pictures)
    assert asked == [(first.record, list(range(30)))]
    assert page.count("<img ") == 1
    assert "Pictures: of one image only." in _text(page)
    table = image_table([first, second], ["rs", "my drs"], pictures)
    (row,) = [row for row in table.rows if row.image_id == 3]
    assert row.picture == "data:image/png;base64,AAAA"
    own = backwards.to_pylist()[29 - 3]
    assert row.answers[1].radius == own["radius"]
    assert row.answers[1].votes == tuple(f"{votes:,} / 1,000" for votes in own["class_votes"])
    assert {"3", "image:3", f"label:{row.label}", f"my-drs:{row.answers[1].kind}"} <= set(row.words.split())
    for one in table.rows:
        kinds = {answer.kind for answer in one.answers}
        assert ("differ" in one.words.split()) == (len(kinds) > 1)
        assert kinds <= set(one.words.split())


def test_page_compares_runs_image_by_image_with_what_that_does_not_say() -> None:
    runs = [make_result(80, 1, uri="runs/rs", seed=1), make_result(80, 2, uri="runs/drs", seed=1, sigma=0.6)]
    text = _text(render_report(runs))
    (pair,) = paired_differences(runs, RADII)
    assert f"rs and drs: {pair.verdict}" in text
    for row in pair.at_radii:
        shown = [row.radius_text, row.both, row.only_first, row.only_second, row.neither, row.difference_text]
        assert " ".join(map(str, [*shown, row.interval_text, row.p_text, row.p_holm_text])) in text
    assert len(pair.in_mean) == 2
    for mean in pair.in_mean:
        assert " ".join([mean.name, mean.difference_text, mean.interval_text, mean.p_text]) in text
    for best in envelope(runs, RADII):
        names = ", ".join(name for _, name in best.best)
        expected = [best.radius_text, names, best.accuracy_text, best.interval_text, best.guaranteed_text]
        assert " ".join(expected) in text.replace(" ,", ",")
    for said in ("adjusted for all 5 tests", "The envelope is a choice after the fact", "within ± 0.152", "pointwise"):
        assert said in text
    assert "McNemar" not in _text(render_report(runs[:1]))


def test_votes_of_many_sub_images_are_summed_up() -> None:
    run = make_result(5, 2)
    many = pa.array([[7, 3, 9, 5, 8]] * 5, run.certificates.schema.field("class_votes").type)
    samples = pa.array([[10] * 5] * 5, run.certificates.schema.field("estimation_samples").type)
    table = run.certificates
    for name, column in {"class_votes": many, "estimation_samples": samples}.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    rows = image_table([dataclasses.replace(run, certificates=table)], ["run"], None).rows
    assert rows[0].answers[0].votes == ("least 3 / 10", "most 9 / 10")
    assert rows[0].answers[0].weakest == 0.3


def test_config_on_the_page_is_the_runs_own() -> None:
    run = make_result(10, 2, name="folder", root="/data/ä: 'b'")
    page = render_report([run])
    (text,) = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert parse_config(yaml.safe_load(html.unescape(text))) == run.record.config


def test_wrong_and_abstaining_images_are_told_apart() -> None:
    run = make_result(30, hardest=0.2)
    rows = run.certificates.to_pylist()
    text = _text(render_report([run]))
    abstaining = next(row for row in rows if row["prediction"] == -1)
    assert f"abstains (selected {abstaining['selected_class']})" in text
    assert text.count("(wrong)") == sum(row["prediction"] not in (-1, row["label"]) for row in rows) > 0
    assert "All 30 images" in text


def test_what_users_named_comes_out_escaped() -> None:
    attack = "<script>alert(1)</script>"
    run = make_result(10, 2, root=f"/data/{attack}\"'&", split=attack)
    run = dataclasses.replace(run, uri=f'runs/{attack.replace("/", "")}"&')
    page = render_report([run, dataclasses.replace(run, uri=run.uri + "2")])
    assert page.count("<script") == 1
    assert html.escape(attack) in page
    parser = _Checker()
    parser.feed(page)
    assert parser.open == []


def test_figure_follows_the_pages_colours() -> None:
    page = render_report([make_result(20, 1, uri="runs/rs"), make_result(20, 2, uri="runs/#0072b2")])
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert "var(--run-0)" in svg
    assert "var(--run-1)" in svg
    assert "currentColor" in svg
    assert "#0072b2 (DRS" in svg  # a name is not a colour
    assert not re.search(r"(?:fill|stroke): #", svg)
    assert 'role="img"' in svg
    assert '<title id="figure-title">' in svg


def test_same_runs_same_page() -> None:
    assert render_report([make_result(20)]) == render_report([make_result(20)])


def test_other_test_sets_are_refused_and_nothing_is_written() -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match="different test sets"):
        write_report([make_result(5), make_result(6, uri="runs/other")], store)
    assert store.objects == {}


@pytest.mark.parametrize("module", ["jinja2", "matplotlib.figure"])
def test_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    store = MemoryStore()
    with pytest.raises(ConfigError, match=r"install drs-ray\[report\]"):
        write_report([make_result(5)], store)
    assert store.objects == {}


def test_large_runs_stay_small() -> None:
    page = render_report([make_result(50_000, 2, estimation=100_000), make_result(50_000, 1, uri="runs/rs")])
    assert len(page) < 1_000_000
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert max(path.count("L ") for path in re.findall(r'd="([^"]*)"', svg)) < 4_000  # bands go there and back


def test_reporting_imports_neither_torch_nor_ray_nor_pyplot() -> None:
    code = (
        "import sys; from tests.unit.counts.factories import *; from drs_ray.report import page, terminal_table; "
        "run = make_result(5); page.write_report([run], MemoryStore()); terminal_table.render_table([run]); "
        "found = {'torch', 'torchvision', 'ray', 'matplotlib.pyplot'} & set(sys.modules); "
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _Checker(HTMLParser):
    """Collects tags, ids and references, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _text(page: str) -> str:
    """What a reader sees, as one line."""
    body = re.sub(r"<script>.*</script>", "", page[page.index("<body") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def _sized(record: RunRecord, size: int) -> RunRecord:
    return record.model_copy(update={"dataset": record.dataset.model_copy(update={"size": size})})
