"""docker-compose.yml and the files that it goes with: pinned, confined, and of one mind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.compose import ROOT, VARIABLE, Compose, Dockerfile, Service, compose_text, is_in_context
from trillion_serve.engines.server_flags import STRUCTURED_OUTPUTS
from trillion_serve.gateway.config import GatewayConfig

REQUIRED = {"MODEL_DIR": "./model", "GRAFANA_PASSWORD": "secret"}
COMPOSE = Compose.read(REQUIRED)
SERVICES = COMPOSE.services
ENGINES = ("engine-cpu", "engine-gpu")
OURS = ("gateway", *ENGINES)
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")
CONFIG = ROOT / "deploy" / "gateway" / "gateway.yaml"

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_of_ours = pytest.mark.parametrize("service", [SERVICES[name] for name in OURS], ids=OURS)
each_engine = pytest.mark.parametrize("engine", [SERVICES[name] for name in ENGINES], ids=ENGINES)
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def flags(service: Service) -> dict[str, str]:
    """The flags of a command, those without a value as an empty one."""
    return {
        name: value for name, _, value in (word.partition("=") for word in service.command if word.startswith("--"))
    }


def seconds(text: str) -> int:
    (count, unit) = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(count) * {"s": 1, "m": 60}[unit]


def variables() -> dict[str, str]:
    """The file's variables, and whether they have to be set (``:?``) or have a default (``:-``)."""
    return {match["name"]: match["sign"] for match in VARIABLE.finditer(compose_text())}


def test_there_are_a_gateway_an_engine_for_each_profile_prometheus_and_grafana():
    assert {name: service.profiles for name, service in SERVICES.items()} == {
        "gateway": (),
        "engine-cpu": ("cpu",),
        "engine-gpu": ("gpu",),
        "prometheus": (),
        "grafana": (),
    }


@each_service
def test_images_are_pinned(service: Service):
    assert PINNED.fullmatch(service.image)


@each_service
def test_nothing_runs_as_root(service: Service):
    assert re.fullmatch(r"[1-9]\d*:\d+", service.user)


@each_service
def test_health_is_checked_within_its_interval(service: Service):
    check = service.healthcheck
    assert check.test[0] == "CMD"
    assert len(check.test) > 1
    assert seconds(check.timeout) < seconds(check.interval)
    assert check.retries >= 1


@each_service
def test_resources_are_limited(service: Service):
    assert set(service.limits) == {"cpus", "memory"}


@each_service
def test_nothing_has_capabilities_or_can_gain_any(service: Service):
    assert service.cap_drop == ("ALL",)
    assert service.security_opt == ("no-new-privileges:true",)


@each_of_ours
def test_our_containers_change_nothing_of_their_images(service: Service):
    assert service.read_only
    assert service.init


@each_service
def test_only_this_machine_reaches_what_is_published(service: Service):
    for port in service.ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_only_the_gateway_and_grafana_are_published_and_the_rest_is_cut_off():
    assert {name for name, service in SERVICES.items() if service.ports} == {"gateway", "grafana"}
    assert {name for name, service in SERVICES.items() if set(service.networks) == {"backend"}} == {
        *ENGINES,
        "prometheus",
    }
    assert COMPOSE.networks["backend"]["internal"] is True


@each_service
def test_what_a_service_names_is_there(service: Service):
    assert set(service.networks) <= set(COMPOSE.networks)
    assert set(service.depends_on) <= set(SERVICES)
    for target, source in service.mounts.items():
        assert target.startswith("/")
        named = source in COMPOSE.volumes
        assert named or source == REQUIRED["MODEL_DIR"] or (ROOT / source).exists(), f"there is no {source}"
    if service.build is not None:
        assert (ROOT / service.build.dockerfile).is_file()


def test_volumes_and_networks_are_used():
    sources = {source for service in SERVICES.values() for source in service.mounts.values()}
    assert set(COMPOSE.volumes) <= sources
    assert set(COMPOSE.networks) == {network for service in SERVICES.values() for network in service.networks}


@pytest.mark.parametrize("name", variables())
def test_each_variable_is_documented_with_its_default(name: str):
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
    defaults = {match["text"] for match in VARIABLE.finditer(compose_text()) if match["name"] == name}
    if variables()[name] == ":-":
        assert all(f"`{default}`" in row for default in defaults)
    else:
        assert "required" in row


def test_variables_that_have_to_be_set_are_asked_for():
    assert {name for name, sign in variables().items() if sign == ":?"} == set(REQUIRED)
    for missing in REQUIRED:
        with pytest.raises(KeyError, match=missing):
            Compose.read({name: value for name, value in REQUIRED.items() if name != missing})


def test_both_engines_are_started_alike():
    cpu, gpu = (SERVICES[name] for name in ENGINES)
    assert cpu.command[:3] == gpu.command[:3] == ("vllm", "serve", "/models/model")
    differ = set(flags(cpu).items()) ^ set(flags(gpu).items())
    assert {name for name, _ in differ} == {"--kv-cache-memory-bytes", "--enforce-eager", "--tensor-parallel-size"}
    assert (cpu.networks, cpu.volumes, cpu.healthcheck) == (gpu.networks, gpu.volumes, gpu.healthcheck)


@each_engine
def test_an_engine_enforces_grammars_as_the_gateway_needs_it(engine: Service):
    assert json.loads(flags(engine)["--structured-outputs-config"]) == STRUCTURED_OUTPUTS


@each_engine
def test_the_gateway_sends_to_where_the_engine_listens(engine: Service):
    (model,) = GatewayConfig.read(CONFIG).models
    (replica,) = model.replicas
    (alias,) = engine.networks["backend"].aliases
    port = flags(engine)["--port"]
    assert replica.url == f"http://{alias}:{port}"
    assert replica.model == flags(engine)["--served-model-name"]
    assert model.tokenizer == engine.command[2]
    assert engine.mounts[model.tokenizer] == SERVICES["gateway"].mounts[model.tokenizer]
    assert f"http://127.0.0.1:{port}/health" in engine.healthcheck.test[-1]
    assert "backend" in SERVICES["gateway"].networks


def test_the_gateway_listens_where_it_is_published_checked_and_scraped():
    gateway, server = SERVICES["gateway"], GatewayConfig.read(CONFIG).server
    (published,) = gateway.ports
    assert published.split(":")[2] == str(server.port)
    assert f"http://127.0.0.1:{server.port}/ready" in gateway.healthcheck.test[-1]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (targets,) = [job["static_configs"] for job in prometheus["scrape_configs"] if job["job_name"] == "trillion-serve"]
    assert targets == [{"targets": [f"gateway:{server.port}"]}]
    assert server.metrics_public
    assert server.shutdown_timeout < seconds(gateway.stop_grace_period)


def test_the_keys_lie_in_the_folder_that_is_mounted_and_stay_out_of_git_and_images():
    gateway = SERVICES["gateway"]
    config = Path(flags(gateway)["--config"])
    assert (ROOT / gateway.mounts[str(config.parent)] / config.name).resolve() == CONFIG
    keys = GatewayConfig.read(CONFIG).keys_file
    assert keys == CONFIG.with_name("keys.yaml")
    name = str(keys.relative_to(ROOT))
    assert name in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert not is_in_context(name)


def test_prometheus_and_grafana_find_their_files():
    prometheus, grafana = SERVICES["prometheus"], SERVICES["grafana"]
    config = Path(flags(prometheus)["--config.file"])
    assert (ROOT / prometheus.mounts[str(config.parent)] / config.name).is_file()
    assert prometheus.mounts[flags(prometheus)["--storage.tsdb.path"]] == "prometheus"
    provisioning = ROOT / grafana.mounts["/etc/grafana/provisioning"]
    (provider,) = read_yaml(provisioning / "dashboards" / "trillion-serve.yml")["providers"]
    folder = provider["options"]["path"]
    assert [source for target, source in grafana.mounts.items() if target.startswith(f"{folder}/")] == [
        "./deploy/grafana/dashboard.json"
    ]
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_dockerfile_is_built_by_a_service():
    built = {service.build.dockerfile for service in SERVICES.values() if service.build is not None}
    assert built == {str(path.relative_to(ROOT)) for path in DOCKERFILES}


@each_dockerfile
def test_dockerfiles_start_from_pinned_images_and_do_not_end_as_root(path: Path):
    dockerfile = Dockerfile.read(path)
    for base in dockerfile.all("FROM"):
        assert PINNED.fullmatch(base.split(" AS ")[0])
    assert dockerfile.last_stage.all("USER") == ["10001:10001"]


@each_dockerfile
def test_what_dockerfiles_copy_and_install_is_there_and_let_through(path: Path):
    dockerfile = Dockerfile.read(path)
    assert dockerfile.sources
    files = [*dockerfile.sources, *re.findall(r"\b(?:requirements|scripts)/[\w.-]+", " ".join(dockerfile.all("RUN")))]
    for file in files:
        assert (ROOT / file).exists(), f"there is no {file}"
        assert is_in_context(file), f".dockerignore leaves {file} out"


@pytest.mark.parametrize(
    "file", [".git/config", ".venv/bin/python", "trillion_serve/__pycache__/x.pyc", "tests/conftest.py"]
)
def test_what_is_not_needed_stays_out_of_the_images(file: str):
    assert not is_in_context(file)
