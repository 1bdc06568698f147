"""Our Prometheus and Grafana files: well formed, and about metrics that a gateway really has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.metrics import Scrape
from support.running_gateway import MODEL
from support.served_app import serve_app
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.fake import FakeEngine
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.routing import Pool

DEPLOY = Path(__file__).parents[3] / "deploy"
METRIC = re.compile(r"\b(?:(?:vllm|trillion):\w+|process_\w+)")
LABELS = re.compile(r"((?:vllm|trillion):\w+)\{([^}]*)\}")


def panels() -> list[dict[str, Any]]:
    return json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression, with where it stands."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.fixture(scope="module")
def scraped(tokenizer: ChatTokenizer) -> Scrape:
    """The metrics of a gateway over a pool, after an answer and a refusal."""
    pool = Pool()

    async def engine() -> FakeEngine:
        return FakeEngine(lambda _: [*tokenizer.encode("응\n</think>\n\n둘"), *tokenizer.end_ids])

    async def prepare() -> None:
        pool.add("only", engine)
        await pool.ready(5)

    with serve_app(create_app(Models([ServedModel(MODEL, pool, tokenizer)])), prepare) as url:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        assert httpx.post(f"{url}/v1/chat/completions", json={**body, "temperature": 3}).status_code == 400
        return Scrape(url)


def test_there_are_expressions() -> None:
    assert len(list(expressions())) > 30
    assert all(METRIC.search(expr) or "up{" in expr for _, expr in expressions())


@pytest.mark.parametrize(("place", "expr"), list(expressions()))
def test_every_metric_exists(scraped: Scrape, place: str, expr: str) -> None:
    assert set(METRIC.findall(expr)) <= scraped.names, place


@pytest.mark.parametrize(("place", "expr"), list(expressions()))
def test_every_label_exists(scraped: Scrape, place: str, expr: str) -> None:
    for name, matchers in LABELS.findall(expr):
        known = {label for found, labels in scraped.samples if found == name for label, _ in labels}
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers)) <= known, place


def test_alerts_say_what_is_wrong() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_prometheus_reads_our_alerts_and_scrapes_the_gateway() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [(DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"]] == [True]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["trillion-serve"]["metrics_path"] == "/metrics"
    assert jobs["trillion-serve"]["static_configs"] == [{"targets": ["gateway:8000"]}]


def test_grafana_is_provisioned_with_what_the_dashboard_asks_for() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "trillion-serve.yml").read_text())["providers"]
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (source["type"], provider["type"]) == ("prometheus", "file")
    assert variables["datasource"]["query"] == source["type"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"} == set(variables)
