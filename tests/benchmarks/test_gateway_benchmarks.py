"""The gateway's benchmarks do run: each tells its options, and what they measure with measures."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.progress import Progress

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def beside_one_another(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks import one another as the scripts they are."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["gateway_overhead", "gateway_soak", "throughput"])
def test_it_tells_its_options(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"Usage: {name}.py" in shown.stdout
    assert "--quick" in shown.stdout


@pytest.mark.usefixtures("beside_one_another")
def test_a_small_load_through_the_bare_pass_through() -> None:
    import gateway_overhead as overhead
    import gateways

    plan = overhead.Plan(concurrencies=(20,), rounds=1, answers=1, unpaced_seconds=1.0, memory_requests=50)
    core, _ = gateways.cores()
    with (
        Progress(disable=True) as progress,
        gateways.upstream(core, 1.0, range(32)) as direct,
        gateways.starlette(core, direct.url) as proxy,
    ):
        paced = overhead.measure_paced([direct, proxy], plan, progress)
        unpaced = overhead.measure_unpaced([direct, proxy], plan, progress)
    assert [(found.target, found.requests, found.failed) for found in paced] == [
        ("direct", 20, 0),
        ("starlette", 20, 0),
    ]
    # 32 chunks, all but the first of them after a pause.
    assert all(found.total_p50 > found.ttft_p50 + 25 for found in paced)
    assert [found.failed for found in unpaced] == [0, 0]
    assert all(found.streamed > 0 < found.whole for found in unpaced)
    assert all(found.memory_requests == 50 and found.memory_before > 5 for found in unpaced)
    assert overhead.paced_table(paced).row_count == 2


@pytest.mark.usefixtures("beside_one_another")
def test_throughput_compares_servers_and_loads_nothing_but_this_machine() -> None:
    import throughput

    point = throughput.Point("server", 1.0, 2.0, 2.0, 20.0, 1.0, 2.0, 1.0, 2.0, 5, 0)
    table = throughput.table([point, replace(point, server="peer", goodput=1.0)])
    assert list(table.columns[-1].cells) == ["2.00x", ""]
    with pytest.raises(typer.BadParameter, match="not on the loopback"):
        throughput.run("http://10.0.0.1:8000", "m", "t", 1.0, 5, 8, {})


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="make test-clients installs locust")
def test_locust_mixes_chats(tokenizer_dir: Path) -> None:
    from support.running_gateway import Gateway, run_gateway
    from trillion_serve.chat.tokenizer import ChatTokenizer
    from trillion_serve.engines.protocol import GenerateRequest

    def load(gateway: Gateway, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "locust", "-f", str(FOLDER / "locustfile.py"), "--headless", "--only-summary"]
        command += ["--users=8", "--spawn-rate=8", "--run-time=4s", f"--host={gateway.url.removesuffix('/v1')}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)

    with run_gateway(ChatTokenizer.load(str(tokenizer_dir))) as gateway:
        calm = load(gateway)
        assert calm.returncode == 0, calm.stderr
        assert len(gateway.requests) > 8
        assert re.search(r"SSE +ttft think +[1-9]", calm.stdout + calm.stderr)

        def broken(_: GenerateRequest) -> str:
            raise RuntimeError("the model is gone")

        gateway.reply = broken
        assert load(gateway).returncode == 1
