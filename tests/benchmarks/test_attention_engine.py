"""What the attention benchmark measures is the model's own shape, and its tables say what was measured."""

import io

import pytest
from rich.console import Console

from benchmarks import attention_engine
from benchmarks.attention_runs import EXPANDED, OURS, TRANSFORMERS, Result, Step, Stopwatch, shape


@pytest.mark.parametrize(
    ("layers", "windows", "global_layers"),
    [(1, True, [0]), (2, True, [1]), (6, True, [5]), (8, True, [5]), (2, False, [0, 1])],
)
def test_fewer_layers_keep_the_widths_and_the_pattern(layers, windows, global_layers):
    config = shape(layers, 4096, windows)
    assert (config.hidden_size, config.num_attention_heads, config.n_routed_experts) == (1536, 12, 64)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (layers, 4096)
    assert [i for i in range(layers) if not config.is_local(i)] == global_layers


def test_a_stopwatch_adds_up_what_it_wraps():
    watch = Stopwatch()
    double = watch.wrap(lambda number: 2 * number)
    assert [double(1), double(2)] == [2, 4]
    watch.lap()
    watch.lap()
    assert watch.laps[0] > 0
    assert watch.laps[1] == 0


def test_the_table_has_ratios_where_both_were_measured():
    ours = Result(
        OURS, {512: 900.0}, [Step(1024, 1, 0.05, 0.002), Step(1024, 8, 0.1, 0.01)], Step(1024, 60, 1.0, 0.2), 9
    )
    theirs = Result(EXPANDED, {512: 600.0}, [Step(1024, 1, 0.06, 0.004)], Step(1024, 6, 0.5, 0.1), 9)
    plain = Result(TRANSFORMERS, {512: 300.0}, [Step(1024, 1, 0.5, 0.02), Step(1024, 8, 0.9, 0.2)], None, 9)
    console = Console(file=io.StringIO(), width=160)
    console.print(attention_engine._table({OURS: ours, EXPANDED: theirs, TRANSFORMERS: plain}, "title"))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    assert [line for line in lines if line] == [
        ["prefill 512, tokens/s", "900", "600", "300", "1.50 x"],
        ["step at 1,024 x 1, ms", "50.0", "60.0", "500.0", "1.20 x"],
        ["its attention at 1,024 x 1, ms", "2.0", "4.0", "20.0", "2.00 x"],
        ["step at 1,024 x 8, ms", "100.0", "-", "900.0", "-"],
        ["its attention at 1,024 x 8, ms", "10.0", "-", "200.0", "-"],
        ["requests that fit", "60", "6", "-", "10.00 x"],
        ["step of all of them, ms", "1,000.0", "500.0", "-", ""],
        ["decode, tokens/s", "60.0", "12.0", "-", "5.00 x"],
    ]
