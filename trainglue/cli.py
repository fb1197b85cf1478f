"""The command line: `trainglue METHOD`, `trainglue train run.toml`, and what goes with them."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

import datakit
from datakit.commandline import Group, as_json_option, print_json
from datakit.errors import UsageError
from datakit.mixing import recipe as recipes
from datakit.output import manifest as manifests
from datakit.terminal import plural
from trainglue import config, options
from trainglue.methods import METHODS, resolve

EPILOG: Final = (
    "Every option of the trainer's config in the installed TRL is an option here under its own name, such as "
    "--max-steps 200 or --learning-rate 1e-5; `trainglue api METHOD` lists them. --print-config shows the defaults. "
    "Exit codes: 0 trained, 1 the data fails, 2 wrong call, 3 could not judge, 5 out of memory, 70 internal, "
    "130 and 143 interrupted."
)
LINES: Final = {
    "sft": "Supervised fine-tuning on the assistant's turns.",
    "dpo": "Direct preference optimisation on pairs.",
    "orpo": "Preferences without a reference model (odds ratio).",
    "cpo": "Preferences without a reference model (contrastive; SimPO with --loss-type simpo).",
    "kto": "Single answers that are good or bad.",
    "bco": "Single answers that are good or bad, by a classifier.",
    "reward": "A model that scores answers, from pairs.",
    "grpo": "The model's own answers, scored by reward functions.",
    "prm": "A model that scores the steps of an answer.",
}


class Commands(Group):
    """Commands of runs, which go on only where they are told to."""

    interrupted = "interrupted; the same command with --resume goes on from the last checkpoint"
    program = "trainglue"
    defect = "Where the last lines above are of a reward or a model of yours, mend it; else please report this."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(datakit.__version__, prog_name="trainglue")
def main() -> None:
    """From a shard folder to a training run.

    \b
    trainglue sft --data ready/ --model Qwen/Qwen2.5-0.5B-Instruct --output-dir out/ --lora 16
    trainglue train run.toml
    trainglue dpo --print-config
    """


# ---------------------------------------------------------------- training


def _command(name: str, line: str, *arguments: click.Parameter) -> click.Command:
    """A command that trains: every field that the method takes as an option, and each of the trainer's config."""
    fields = {field.name: field for field in config.FIELDS if not field.methods or name in (*field.methods, "train")}

    def run(print_config: bool, file: str | None = None, **named: Any) -> None:
        said = {key: value for key, value in named.items() if value not in (None, ()) and value is not False}
        told = {key: _read(fields[key], value) for key, value in said.items()}
        told |= _others(click.get_current_context().args)
        method = name
        if file is not None:
            told = config.merged(config.load(file), told)
            method = told.pop("method")
        _run(method, told, print_config)

    printing = click.Option(["--print-config"], is_flag=True, help="Print everything that the run is told, and stop.")
    return click.Command(
        name,
        callback=run,
        help=line,
        epilog=EPILOG,
        params=[*arguments, *map(_option, fields.values()), printing],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _option(field: config.Field) -> click.Option:
    names = [f"--{field.name.replace('_', '-')}", *(["--output"] if field.name == "output_dir" else []), field.name]
    if field.type == "boolean":
        return click.Option(names, is_flag=True, help=field.help)
    kinds: dict[str, Any] = {"integer": click.INT, "number": click.FLOAT}
    several = "object" in field.type or "array" in field.type
    kind = click.Choice(list(field.choices)) if field.choices else kinds.get(str(field.type), click.STRING)
    return click.Option(names, type=kind, multiple=several, help=field.help, metavar=field.metavar or None)


def _read(field: config.Field, value: Any) -> Any:
    """What was typed for a field; tables are typed in parts."""
    if "object" in field.type:
        return config.fields_of(value, f"--{field.name.replace('_', '-')}")
    return list(value) if "array" in field.type else value


def _others(arguments: Sequence[str]) -> dict[str, Any]:
    """`--max-steps 2 --packing --no-bf16 --beta=0.2` as options of the trainer's config, read as they look."""
    found: dict[str, Any] = {}
    current = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            if name.startswith("no_") and not equals and name not in options.RENAMED:
                name, equals, value = name[3:], "=", "false"
            found[name] = config.value_of(value) if equals else True
            current = "" if equals else name
        elif current:
            found[current] = config.value_of(argument)
            current = ""
        else:
            raise UsageError(f"{argument} belongs to no option", "Options are --name value.")
    return found


TRAIN: Final = """Train as a TOML file says; options given here come first.

\b
trainglue train run.toml
trainglue train run.toml --resume
"""
main.add_command(_command("train", TRAIN, click.Argument(["file"], metavar="RUN.TOML")))
for _name in METHODS:
    main.add_command(_command(_name, LINES[_name]))


def _run(method: str, given: dict[str, Any], print_config: bool) -> None:
    config.check_values(given, f"trainglue {method}")
    config.check_method(method, given, f"trainglue {method}")
    if print_config:
        _print_config(method, given)
        return
    missing = [name for name in config.REQUIRED[1:] if name not in given]
    if missing:
        raise UsageError(f"no {missing[0]}", f"trainglue {method} --{missing[0].replace('_', '-')} ...")
    from trainglue.training import trainer

    with _quiet():
        made = trainer(method, **given)
        _follow(made)
        made.train()
        last = made.state.log_history[-2:]
        if made.eval_dataset is not None and not any("eval_loss" in entry for entry in last):
            made.evaluate()
        made.save_model()
    if made.is_world_process_zero():
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        told = ", loss " + " to ".join(f"{loss:.4g}" for loss in (losses[0], *losses[1:][-1:])) if losses else ""
        click.echo(f"{method} trained, {plural(made.state.global_step, 'step')}{told}: {made.args.output_dir}")
    made.accelerator.end_training()  # processes that end with an open group may abort


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries tell of their own changes and load bars; a person at a terminal gets the bars, nobody the changes."""
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*trl.experimental")
        yield


def _print_config(method: str, told: Mapping[str, Any]) -> None:
    """The run as a run.toml, checked as a run is; whether it goes on or replaces another is not part of it."""
    from trainglue import engines, models, training

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        engines.choose(told.get("engine", "auto"), folder)
        models.check_lora(told.get("lora"))
        config_class = resolve(method)[1]
    names = [field.name for field in config.FIELDS]
    own = {name: told[name] for name in names if name in told and name not in ("resume", "overwrite")}
    of_config = {name: value for name, value in told.items() if name not in names}
    form = "packed" if own.get("format", {}).get("pack") else _form(own.get("data", ""))
    share, preset = training.defaults(METHODS[method], own, of_config, form)
    if method == "grpo" and "reward" in own:
        from trainglue.rewards import several

        several(own["reward"])
    with _quiet():
        arguments = training.checked(config_class, METHODS[method], of_config, preset)
    taken, notes = options.checked(config_class, METHODS[method], of_config)
    for note in notes:
        click.echo(f"trainglue: {note}", err=True)
    first = {name: own.get(name) for name in config.REQUIRED[1:]} | ({"eval_share": share} if share else {})
    usual = {name: arguments[name] for name in options.translated(config_class, preset)}
    comments = {name: "default" for name in (*usual, "eval_share") if name not in taken and name not in own}
    comments |= {field.name: field.help for field in config.FIELDS if first.get(field.name, "") is None}
    click.echo(config.to_toml({"method": method, **first, **usual, **own, **taken}, comments), nl=False)


def _form(data: str) -> str:
    """The form of the rows in a shard folder, or in the sources of a recipe; empty where there is none."""
    path = Path(recipes.read(data).sources[0].path if data.endswith(".toml") and Path(data).is_file() else data)
    return str(manifests.load(path)["form"]) if (path / manifests.NAME).is_file() else ""


@main.command()
def rewards() -> None:
    """List the reward functions that are ready for --reward."""
    from trainglue.rewards import DOTTED, listing

    for name, line in listing().items():
        click.echo(f"{name:<16} {line}")
    click.echo(f"\nOne of yours: {DOTTED[0].lower()}{DOTTED[1:]}")


def _follow(made: Any) -> None:
    """A line for each logging step, and a live bar where a person is looking."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from trainglue.callbacks import Bar, Lines

    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    made.add_callback(Lines())
    if sys.stderr.isatty():
        made.add_callback(Bar())


# ---------------------------------------------------------------- before and after training


@main.command(epilog="Exit codes: 0 at least one of the cases asked about can be trained, 1 none can, 2 wrong call.")
@click.argument("method", required=False, metavar="[METHOD]")
@click.option(
    "--precision", metavar="NAME", help="fp32, bf16, fp16, qlora, fp8, 'fp8 te', fp8_weights; by default all."
)
@click.option("--engine", metavar="NAME", help="trl or unsloth; by default those that are installed.")
@click.option("--model", metavar="PATH|NAME", help="Look at this model too: access, chat template, pad token.")
@as_json_option
def doctor(as_json: bool, **options: Any) -> None:
    """What this machine and these versions can train, and the command that repairs what they cannot.

    \b
    trainglue doctor
    trainglue doctor dpo --precision qlora && trainglue dpo ...
    """
    from trainglue.machine import diagnosis

    found = diagnosis.doctor(**options)
    _tell(found, diagnosis.describe, as_json)
    if found.exit_code:
        raise click.exceptions.Exit(found.exit_code)


@main.command()
@click.argument("method", metavar="METHOD")
@click.option("--engine", default="trl", show_default=True, metavar="NAME", help="trl or unsloth.")
@as_json_option
def api(as_json: bool, **options: Any) -> None:
    """Every option that the installed trainer takes, with type and default, and where others went.

    \b
    trainglue api dpo
    """
    from trainglue.machine import signatures

    with _quiet():
        found = signatures.api(**options)
    _tell(found, signatures.describe, as_json)


@main.command(epilog="Exit codes: 0 written, 2 wrong call, 4 not written, 70 the result computes something else.")
@click.argument("source", metavar="RUN")
@click.option("-o", "--output", required=True, metavar="DIR", help="A new folder; whole or absent.")
@click.option(
    "--to",
    type=click.Choice(["adapter", "merged", "gguf"]),
    default="merged",
    show_default=True,
    help="adapter: the LoRA weights. merged: a plain model. gguf: with a Modelfile and llama.cpp's commands.",
)
@click.option("--base", metavar="PATH|NAME", help="The model under the adapter, where it moved.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights; by default as the base."
)
@click.option("--quantization", default="q4_k_m", show_default=True, metavar="TYPE", help="gguf: a type of llama.cpp.")
@click.option("--check/--no-check", default=True, show_default=True, help="Load what was written and compare logits.")
@as_json_option
def export(as_json: bool, **options: Any) -> None:
    """Write a trained model as an adapter, a plain model, or ready for GGUF and Ollama.

    \b
    trainglue export out/ -o merged/
    trainglue export out/ -o ollama/ --to gguf --quantization q4_k_m
    """
    from trainglue.handoff import exporting

    with _quiet():
        made = exporting.export(**options)
    _tell(made, exporting.describe, as_json)


def _tell(found: Any, text: Callable[[Any], str], as_json: bool) -> None:
    """Print it, for a program or for a person."""
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(text(found))
