"""Recipes: what is read, what overrides it, and what is refused."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from trillion_training import cli
from trillion_training.config import load_recipe
from trillion_training.errors import RecipeError

SHIPPED = sorted(Path(cli.__file__).with_name("recipes").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("budget: {minutes: 2}\noptimizer: {lr: 0.01}\n")
    return path


def test_flags_override_the_file_and_none_does_not(file: Path) -> None:
    recipe = load_recipe(file, {"budget.minutes": 0.5, "budget.steps": None, "batching.rows": 3, "seed": 7})
    assert recipe.budget.minutes == 0.5 and recipe.budget.steps is None
    assert (recipe.batching.rows, recipe.seed, recipe.optimizer.lr) == (3, 7, 0.01)
    assert load_recipe(file).budget.minutes == 2


def test_json_is_read_too(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(load_recipe(file).model_dump_json())
    assert load_recipe(path) == load_recipe(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("budget: {}", "budget: .*give steps, minutes or both"),
        ("optimizer: {lr: 1}", "budget: Field required"),
        ("budget: {steps: 1}\nlearning_rate: 3", "learning_rate: Extra inputs are not permitted"),
        ("budget: {steps: 1}\noptimizer: {rate: 3}", r"optimizer\.rate: Extra inputs are not permitted"),
        ("budget: {steps: -1}", r"budget\.steps: Input should be greater than 0"),
        ("budget: {steps: 1}\nschedule: {warmup: 0.6, decay: 0.6}", "schedule: .*must not add up to more than 1"),
        ("- a list", "must be a mapping of sections"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_field(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=problem):
        load_recipe(path)


def test_a_missing_recipe_and_an_override_of_no_section_are_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="seed must be a section with fields of its own, but is 1"):
        load_recipe(file, {"seed": 1, "seed.x": 2})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_we_ship_is_valid(path: Path) -> None:
    assert load_recipe(path).budget.minutes


def test_there_is_a_recipe_for_each_stage_of_the_demo() -> None:
    assert {path.stem for path in SHIPPED} >= {"demo_pretrain", "demo_sft"}


def test_the_commands_are_these_and_each_shows_an_example() -> None:
    commands = [["data", "demo"], ["tokenizer"], ["pretrain"], ["sft"], ["eval"]]
    for command in commands:
        shown = CliRunner().invoke(cli.app, [*command, "--help"])
        assert shown.exit_code == 0
        assert f"Example: trillion-train {' '.join(command)}" in " ".join(shown.output.split())


def test_an_error_of_ours_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["trillion-train", "sft", "--base", "b", "--data", "d", "--out", "o", "--set", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "trillion-train: --set x must be FIELD=VALUE, such as optimizer.lr=0.001\n"


def test_importing_the_command_line_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trillion_training.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
