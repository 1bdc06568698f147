"""What a configuration file may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest
import yaml

from trillion_serve.chat.loops import LoopConfig
from trillion_serve.chat.thinking import EffortBudgets, ThinkingSettings, Transitions
from trillion_serve.engines.vllm import VllmOptions
from trillion_serve.errors import ServeError
from trillion_serve.gateway.config import GatewayConfig, LogConfig, ReplicaConfig, Timeouts
from trillion_serve.gateway.deployment import Deployment, front_settings
from trillion_serve.gateway.observability import LogFormat, ObservabilityConfig
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, digest_of
from trillion_serve.gateway.security.keys_file import add_key
from trillion_serve.gateway.security.limits import RequestLimits
from trillion_serve.routing import PoolConfig, RetryConfig

DOCS = Path(__file__).parents[3] / "docs"
HASH = digest_of("x")
WHOLE = """
models:
  - name: vaetki
    tokenizer: tokenizer
    replicas:
      - {name: a, kind: vllm, url: "http://10.0.0.5:8000/", model: served}
      - {name: b, kind: sglang, url: "http://10.0.0.6:30000", api_key_env: UPSTREAM_KEY}
    pool: {policy: least_load, max_concurrency: 8, retry: {attempts: 2}}
    timeouts: {first_token: 30, total: null}
    thinking:
      budget: 100
      content_loops: null
      reasoning_loops: {repeats: 3, min_tokens: 9, near_repeats: 5, near_min_tokens: 20, similarity: 0.9}
server: {host: 0.0.0.0, port: 9000, limits: {body_bytes: 1000}}
log: {format: json, level: warning}
observability: {log_bodies: true}
keys:
  - {name: team-a, sha256: "HASH", models: [vaetki], requests_per_minute: 3}
keys_file: keys.yaml
""".replace("HASH", HASH)


def write(path: Path, text: str) -> Path:
    file = path / "gateway.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def settings_of(path: Path, text: str) -> FrontSettings:
    """Keys and limits of a file."""
    config = GatewayConfig.read(write(path, text))
    return front_settings(config, config.server.host)


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    config = GatewayConfig.read(write(tmp_path, WHOLE))
    (model,) = config.models
    assert model.tokenizer == str(tmp_path / "tokenizer")
    assert model.replicas == (
        ReplicaConfig(name="a", kind="vllm", url="http://10.0.0.5:8000", model="served"),
        ReplicaConfig(name="b", kind="sglang", url="http://10.0.0.6:30000", api_key_env="UPSTREAM_KEY"),
    )
    assert model.pool == PoolConfig(policy="least_load", max_concurrency=8, retry=RetryConfig(attempts=2))
    assert model.timeouts == Timeouts(first_token=30.0, total=None)
    assert (model.thinking.budget, model.thinking.content_loops) == (100, None)
    assert model.thinking.reasoning_loops == LoopConfig(3, 9, 5, 20, 0.9)
    assert (config.server.host, config.server.port) == ("0.0.0.0", 9000)
    assert config.log == LogConfig(format=LogFormat.JSON, level="warning")
    assert config.observability == ObservabilityConfig(log_bodies=True)
    assert config.server.limits == RequestLimits(body_bytes=1000)
    assert config.keys == (ApiKey("team-a", HASH, models=frozenset({"vaetki"}), requests_per_minute=3),)
    assert config.keys_file == tmp_path / "keys.yaml"


def test_a_gateway_without_models_has_to_be_meant(tmp_path: Path) -> None:
    assert GatewayConfig.read(write(tmp_path, "{}")) == GatewayConfig()
    for half_written in ("", "# models:\n", "---\n"):
        with pytest.raises(ServeError, match=r"gateway\.yaml is empty"):
            GatewayConfig.read(write(tmp_path, half_written))


def test_an_engine_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    text = MODEL % "engine: {model: weights, kv_cache_memory: 1, extra: {block_size: 32}}"
    (model,) = GatewayConfig.read(write(tmp_path, text)).models
    assert model.engine == VllmOptions(str(tmp_path / "weights"), kv_cache_memory=1.0, extra={"block_size": 32})
    assert model.tokenizer == "t"


MODEL = "models: [{name: m, tokenizer: t, %s}]"


def test_a_hub_id_and_an_absolute_directory_stay_what_they_are(tmp_path: Path) -> None:
    for tokenizer in ("owner/name", str(tmp_path)):
        text = yaml.safe_dump({"models": [{"name": "m", "tokenizer": tokenizer}]})
        assert GatewayConfig.read(write(tmp_path, text)).models[0].tokenizer == tokenizer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: []", "model: Extra inputs are not permitted"),
        ("models: [{name: m}]", "models[0].tokenizer: Field required"),
        (MODEL % "tokenizr: 1", "models[0].tokenizr: Extra inputs are not permitted"),
        (MODEL % "pool: {policy: random}", "models[0].pool.policy: Input should be 'prefix' or 'least_load'"),
        (MODEL % "pool: {retry: {atempts: 3}}", "models[0].pool.retry.atempts: Unexpected keyword argument"),
        (MODEL % "pool: {queue_size: -1}", "models[0].pool: Value error, queue_size is -1, but must be 0 or more"),
        (MODEL % 'pool: {max_concurrency: "8"}', "models[0].pool.max_concurrency: Input should be a valid integer"),
        (MODEL % "timeouts: {connect: 0}", "models[0].timeouts.connect: Input should be greater than 0"),
        (MODEL % "thinking: {bugdet: 3}", "models[0].thinking.bugdet: Unexpected keyword argument"),
        (MODEL % "replicas: [{name: a, kind: tgi, url: 'http://x'}]", "models[0].replicas[0].kind: Input should be"),
        (MODEL % "replicas: [{name: a, kind: vllm, url: x}]", "models[0].replicas[0].url: Value error, must be a base"),
        (MODEL % "replicas: [{name: a, kind: vllm, url: 'http://x/v1'}]", "without /v1"),
        (
            MODEL % "replicas: [{name: a, kind: vllm, url: 'http://x'}, {name: a, kind: vllm, url: 'http://y'}]",
            "models[0]: Value error, two of the replicas are called 'a'",
        ),
        (
            MODEL % "engine: {model: w}, replicas: [{name: a, kind: vllm, url: 'http://x'}]",
            "models[0]: Value error, a model has either an engine, in this process, or replicas elsewhere",
        ),
        (MODEL % "engine: {model: w, tokenizer: t}", "models[0]: Value error, the tokenizer stands beside engine"),
        (MODEL % "engine: {model: w, dtyp: auto}", "models[0].engine.dtyp: Unexpected keyword argument"),
        (MODEL % "pool: {drain_timeout: -1}", "models[0].pool: Value error, drain_timeout is -1"),
        (MODEL % "pool: {queue_timeout: .nan}", "models[0].pool.queue_timeout: Input should be a finite number"),
        (MODEL % "pool: {queue_timeout: .inf}", "models[0].pool.queue_timeout: Input should be a finite number"),
        (MODEL % "pool: {retry: {first_wait: -1}}", "models[0].pool: Value error, retry.first_wait is -1"),
        (MODEL % "pool: {breaker: {open_seconds: 0}}", "models[0].pool: Value error, breaker.open_seconds is 0"),
        (MODEL % "pool: {health: {interval: 0}}", "models[0].pool: Value error, health.interval is 0"),
        (MODEL % "pool: {health: {timeout: -5}}", "models[0].pool: Value error, health.timeout is -5"),
        (MODEL % "thinking: {budget: -5}", "models[0].thinking.budget: Input should be greater than or equal to 1"),
        (MODEL % "thinking: {reserve: -1}", "models[0].thinking.reserve: Input should be greater than or equal to 1"),
        (MODEL % "thinking: {reserve_share: 7}", "models[0].thinking.reserve_share: Input should be less than or"),
        (MODEL % "thinking: {efforts: {low: -1}}", "models[0].thinking.efforts.low: Input should be greater than"),
        (
            MODEL % "thinking: {transitions: {en: 'So.</think>'}}",
            "models[0].thinking.transitions.en: Value error, must not contain <think> or </think>",
        ),
        (
            MODEL % "thinking: {content_loops: {repeats: 3, min_tokens: 9, near_repeats: 5, near_min_tokens: 20, "
            "similarity: 1}}",
            "models[0].thinking.content_loops.similarity: Input should be less than 1",
        ),
        ("server: {insecure: yes}", "server.insecure: Input should be a valid boolean"),
        ("server: {drain_delay: -1}", "server.drain_delay: Input should be greater than or equal to 0"),
        ("observability: {scrape_timeout: 0}", "observability.scrape_timeout: Input should be greater than 0"),
        ("models: [{name: m, tokenizer: t}, {name: m, tokenizer: t}]", "two of the models are called 'm'"),
        ("server: {port: 70000}", "server.port: Input should be less than or equal to 65535"),
        ("server: {port: '80'}", "server.port: Input should be a valid integer"),
        ("log: {level: loud}", "log.level: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("server: {limits: {depth: 0}}", "server.limits.depth: Input should be greater than or equal to 1"),
        ("keys: [{name: a, sha256: secret}]", "keys[0].sha256: String should match"),
        (f"keys: [{{name: a, sha256: '{HASH}', concurrency: 0}}]", "keys[0].concurrency"),
        ("- a", "the document: "),
        ("a: [", "is not YAML"),
    ],
)
def test_an_error_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ServeError) as refused:
        GatewayConfig.read(file)
    assert message in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot be read"):
        GatewayConfig.read(tmp_path / "none.yaml")


def test_keys_come_from_the_file_and_from_the_keys_file(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.yaml", ApiKey("team-b", digest_of("b")))
    add_key(tmp_path / "keys.yaml", ApiKey("ops", digest_of("c"), admin=True))
    settings = settings_of(tmp_path, WHOLE)
    assert [key.name for key in settings.keys] == ["team-a", "team-b"]
    assert [key.name for key in settings.admin_keys] == ["ops"]
    assert settings.limits.body_bytes == 1000
    add_key(tmp_path / "keys.yaml", ApiKey("team-a", digest_of("d")))
    with pytest.raises(ServeError, match="two keys are called 'team-a'"):
        settings_of(tmp_path, WHOLE)


@pytest.mark.parametrize(
    ("server", "public"),
    [
        ("{}", True),
        ("{metrics_public: false}", False),
        ("{host: 0.0.0.0, insecure: true}", False),
        ("{host: 0.0.0.0, insecure: true, metrics_public: true}", True),
    ],
)
def test_metrics_are_public_on_loopback_unless_said_otherwise(tmp_path: Path, server: str, public: bool) -> None:
    assert settings_of(tmp_path, f"server: {server}").metrics_public is public


def test_an_open_door_has_to_be_meant(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"other machines can reach 0\.0\.0\.0, and no API key is set"):
        settings_of(tmp_path, "server: {host: 0.0.0.0}")


async def test_a_file_that_speaks_of_another_address_does_not_open_the_door_at_this_one(tmp_path: Path) -> None:
    keyed = f"{{host: 0.0.0.0}}\nkeys: [{{name: a, sha256: '{HASH}'}}]"
    file = write(tmp_path, f"server: {keyed}")
    deployment = Deployment(lambda: GatewayConfig.read(file))
    await deployment.reload()
    write(tmp_path, "server: {host: 127.0.0.1}")
    with pytest.raises(ServeError, match="and no API key is set"):
        await deployment.reload()
    write(tmp_path, f"server: {keyed.replace('0.0.0.0', '127.0.0.1')}")
    await deployment.reload()
    assert len(deployment.front.settings.keys) == 1
    assert not deployment.front.settings.metrics_public


async def test_a_key_that_the_environment_lacks_is_told(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = {"name": "a", "kind": "vllm", "url": "http://127.0.0.1:9", "api_key_env": "UPSTREAM_KEY"}
    model = {"name": "m", "tokenizer": str(tokenizer_dir), "replicas": [replica]}
    file = write(tmp_path, yaml.safe_dump({"models": [model]}))
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    deployment = Deployment(lambda: GatewayConfig.read(file))
    with pytest.raises(ServeError, match="api_key_env names UPSTREAM_KEY"):
        await deployment.reload()
    monkeypatch.setenv("UPSTREAM_KEY", "very-secret")
    config = GatewayConfig.read(file)
    options = config.models[0].replicas[0].options(Timeouts(), PoolConfig())
    assert options.api_key == "very-secret"
    assert "very-secret" not in repr(options) + repr(config)


def documented(tmp_path: Path, page: str) -> list[GatewayConfig]:
    """The files that a page of the documentation shows."""
    shown = (DOCS / page).read_text(encoding="utf-8").split("```yaml\n")[1:]
    return [GatewayConfig.read(write(tmp_path, text.split("```")[0])) for text in shown]


def test_the_examples_in_the_documentation_are_some(tmp_path: Path) -> None:
    whole, here = documented(tmp_path, "gateway.md")
    assert whole.models[0].replicas
    assert whole.keys
    assert whole.keys_file is not None
    assert here.models[0].engine == VllmOptions("models/vaetki-7b", kv_cache_memory=4.0, max_model_len=16384)
    (thinking,) = documented(tmp_path, "thinking.md")
    assert thinking.models[0].thinking == ThinkingSettings(
        on=True,
        budget=8192,
        efforts=EffortBudgets(low=512, high=32768),
        transitions=Transitions(ko="이제 답하겠습니다.", en="I will answer now."),
        reserve=512,
        content_loops=None,
    )
