"""`trainer(...)`: shards, a model and a method to a trainer of TRL that is ready to train.

    open shards, check them ─► engine ─► config ─► rows ─► model ─► precision ─► trainer ─► rows counted, run recorded

What costs little is checked first: a wrong kind, tokenizer or option is refused before anything is loaded.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

import datakit
from datakit.errors import InternalError, UsageError
from datakit.shards import Shards
from datakit.terminal import plural
from datakit.tokens.load import Tokenizer
from datakit.tokens.load import load as read_tokenizer
from trainglue import config as words
from trainglue import data as sources
from trainglue import engines, hooks, memory, models, options, runs, streams
from trainglue.data import Rows
from trainglue.methods import Method, method_named, resolve
from trainglue.models import Loaded
from trainglue.runs import Run
from trainglue.streams import Mixture, Position

OWN: Final = {"self", "model", "args", "train_dataset", "eval_dataset", *options.DECIDED}
"""Arguments of trainers that trainglue gives itself."""

REPORTERS: Final = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}
"""Words of `report_to`, and the packages that they need."""

Folder = str | os.PathLike[str]
Reward = str | Callable[..., Any]


def trainer(
    method: str,
    *,
    model: Any,
    data: Folder,
    output_dir: Folder,
    split: str | None = None,
    eval_data: Folder | None = None,
    eval_split: str | None = None,
    eval_share: float | None = None,
    tokenizer: Folder | None = None,
    chat_template: Folder | None = None,
    max_length: int | None = None,
    format: Mapping[str, Any] | None = None,
    engine: str = "auto",
    precision: Any = None,
    fp8: Mapping[str, Any] | None = None,
    lora: int | Mapping[str, Any] | Any | None = None,
    dtype: str | None = None,
    ref_model: Any = None,
    reward: Reward | Sequence[Reward] | None = None,
    streaming: bool = False,
    early_stopping: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Any:
    """A trainer of the installed TRL, or Unsloth's, over the rows of a shard folder; call its `train()`.

    Args:
        method: sft, dpo, orpo, cpo, kto, bco, reward, grpo or prm.
        model: a folder, a name on the Hub, or a model.
        data: a shard folder, formatted or not; or the recipe of a mix, a TOML file.
        output_dir: the run folder: checkpoints, run.json, the manifest of the data.
        split: of `data`; by default train, or the only one.
        eval_data: another shard folder to evaluate on.
        eval_split: a split of `data` to evaluate on.
        eval_share: of the rows, held out by content; by default 0.1 where neither of the two is given, 0 for GRPO.
        tokenizer: a folder or name, if not that of the model.
        chat_template: a Jinja file instead of the tokenizer's own template; it is saved with the model.
        max_length: tokens that a row may have. Canonical shards are formatted to it, others must keep to it.
        format: further options of `datakit.format` for canonical shards, such as truncation.
        engine: trl, unsloth, or auto: Unsloth where it is installed and usable.
        precision: fp32, bf16, fp16, qlora, fp8 or fp8_weights; by default bf16 on a GPU that has it, else fp16; fp32 on
            a CPU.
        fp8: settings of `precision.Fp8`, such as backend and recipe.
        lora: a rank, or fields of peft's LoraConfig; without it all weights are trained.
        dtype: of the loaded weights; see `models`.
        ref_model: DPO, KTO, BCO: a folder, a name or a model that the loss compares with, in place of the model as it
            is before training.
        reward: GRPO: one or more reward functions, or their names; see `rewards`.
        streaming: give the rows of a recipe as its plan says, without writing the mix; its sources are formatted.
        early_stopping: evaluations without a better loss after which training ends; the best checkpoint is kept.
        resume: go on from the last checkpoint in `output_dir`.
        overwrite: replace the run in `output_dir`.
        settings: any field of the trainer's config, and arguments of the trainer such as callbacks.

    Raises:
        UsageError: an option, the data or the versions do not fit, with the way out.
        CannotJudge: the shards are not what their manifest says.
        DataFailed: canonical rows cannot be formatted.
    """
    kind = method_named(method)
    _check_words(
        kind,
        {
            "eval_share": eval_share,
            "max_length": max_length,
            "format": format,
            "fp8": fp8,
            "lora": lora,
            "ref_model": ref_model,
            "reward": reward,
            "early_stopping": early_stopping,
        },
        settings,
    )
    run, mixture = Run(kind, Path(output_dir), resume, overwrite), _mixture(data, kind, streaming)
    folder = streams.written(data) if mixture is None and streams.is_recipe(data) else data
    trained = mixture.sources if mixture else [_training_shards(folder, kind, split)]
    held = _evaluation_shards(kind, folder, eval_data, eval_split)
    share = _share(eval_share, kind, trained[0], held, mixture, settings.get("eval_strategy") != "no")
    vocabulary, differences = _tokenizer(tokenizer, model, ref_model)
    template = models.template_text(chat_template, vocabulary.chat_template)
    for own in (*trained, *([held] if held else [])):
        if sources.is_formatted(own, kind):
            sources.check_prepared(own, vocabulary, template, kind)
    run.check()

    chosen, why = engines.choose(engine, run.folder)
    run.say(why, *differences)
    models.check_lora(lora)
    trainer_class, config_class = resolve(method)
    of_trainer, of_config = _divided(trainer_class, config_class, settings)
    model_options = of_config.pop("model_init_kwargs", None) or {}
    device = models.device_type(bool(of_config.get("use_cpu")))
    asked = _precision(precision, fp8, device)
    defaults = options.presets(method, lora=bool(lora), evaluates=bool(share) or held is not None)
    defaults |= _decided(run, trained[0], asked, device, mixture) | _stopping(early_stopping, of_config)
    arguments, notes = options.settings(config_class, kind, of_config, defaults)
    run.say(*notes)
    _check_services(arguments)
    config = _built(config_class, arguments)

    def rows_of(own: Shards) -> Rows:
        return _rows(own, kind, vocabulary, chat_template, {"max_length": max_length, **(format or {})})

    if mixture:
        rows, position = streams.rows(mixture, config, run.checkpoint())
    else:
        rows, position = rows_of(trained[0]), None
    rows, evaluation = _held_out(rows, share, run) if share else (rows, rows_of(held) if held else None)
    sources.check_rows(rows)
    _settle_evaluation(config, evaluation, early_stopping)
    longest = max([*rows.lengths, *(evaluation.lengths if evaluation else ())], default=max_length or 2048)
    if kind.hook == "pair_rows":
        config.max_length = longest  # ORPO and CPO want a number; no row is longer

    processing, notes = models.load_tokenizer(vocabulary, template)
    loaded = models.load(
        model,
        method=kind,
        engine=chosen,
        precision=asked,
        lora=lora,
        dtype=dtype,
        longest=longest,
        device=device,
        options=model_options,
        seed=config.seed,
        reference=not getattr(config, "precompute_ref_log_probs", False),
        ref_model=ref_model,
    )
    models.check_vocabulary(loaded, vocabulary)
    stop = models.stop_at(loaded.model, models.end_of_turn(rows.first, processing), processing)
    run.say(*notes, *loaded.notes, *stop)
    weights = _weights(loaded, ref_model)
    conversion = _converted(loaded.model, asked, config)
    run.say(f"precision {conversion.describe()}, on {device}")

    parts = {"peft_config": loaded.peft_config, "ref_model": loaded.reference}
    of_trainer |= {name: part for name, part in parts.items() if part is not None}
    of_trainer |= {"reward_funcs": _rewards(reward)} if kind.name == "grpo" else {}
    meant = {name: value for name, value in config.to_dict().items() if name in {*defaults, *of_config}}
    made = _built(
        hooks.adapted(trainer_class, kind.hook),
        {
            "model": loaded.model,
            "args": config,
            "train_dataset": rows.dataset,
            "eval_dataset": evaluation.dataset if evaluation else None,
            "processing_class": processing,
            **of_trainer,
        },
    )
    _account(made, rows, evaluation, kind)
    run.say(*_changed(made, meant))
    made.resume = os.fspath(run.checkpoint() or "") or None
    made.advice = lambda: memory.advice(
        rows.lengths,
        batch=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        lora=bool(lora),
        checkpointing=config.gradient_checkpointing,
        offloading=getattr(config, "activation_offloading", False),
    )
    known = runs.facts(made, kind, os.fspath(data), rows, evaluation)
    known |= {"engine": chosen, "precision": str(asked), "weights": weights}
    _attach(made, run, known, early_stopping, conversion, position)
    run.keep_manifest(rows)
    return made


def _check_words(method: Method, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what run.toml refuses, and words that would do nothing.

    Raises:
        UsageError: with what to write instead.
    """
    plain = {name: value for name, value in given.items() if isinstance(value, str | int | float | Mapping)}
    words.check_values(plain, "trainer()")
    words.check_method(method.name, [name for name, value in given.items() if value is not None], "trainer()")
    if settings.get("max_steps") == 0:
        raise UsageError("max_steps 0", "A number of updates; -1 goes by num_train_epochs.")


# ---------------------------------------------------------------- data


def _mixture(data: Folder, method: Method, streaming: bool) -> Mixture | None:
    sources.check_path(data)
    if streaming and not streams.is_recipe(data):
        raise UsageError(
            f"streaming and {os.fspath(data)}", "The recipe of a mix is streamed; a folder is memory-mapped anyway."
        )
    return streams.opened(data, method) if streaming else None


def _training_shards(folder: Folder, method: Method, split: str | None) -> Shards:
    return sources.open_shards(folder, method, sources.training_split(folder, split))


def _evaluation_shards(method: Method, data: Folder, eval_data: Folder | None, eval_split: str | None) -> Shards | None:
    if eval_data is not None:
        return sources.open_shards(eval_data, method, eval_split)
    return sources.open_shards(data, method, eval_split) if eval_split is not None else None


def _share(
    given: float | None, method: Method, shards: Shards, held: Shards | None, mixture: Mixture | None, wanted: bool
) -> float:
    """The share of rows to hold out; without a word none of packed rows, which have no ids, and of streams."""
    if given is None:
        possible = wanted and shards.manifest["form"] != "packed" and mixture is None
        return options.HOLD_OUT if held is None and possible and method.name != "grpo" else 0.0
    if given and mixture is not None:
        raise UsageError("eval_share and a stream exclude each other", "Give eval_data, or leave out streaming.")
    if given and held is not None:
        raise UsageError("eval_share and other rows to evaluate on exclude each other", "Leave out one of them.")
    return given


def _tokenizer(tokenizer: Folder | None, model: Any, ref_model: Any) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of the run, and how it differs from those of its models."""
    name = os.fspath(tokenizer) if tokenizer is not None else models.name_of(model)
    if not name:
        raise UsageError("the model was made in memory, so its tokenizer is not known", "Give tokenizer, a path.")
    found = read_tokenizer(name)
    return found, [*models.check_tokenizer(found, model), *models.check_tokenizer(found, ref_model)]


def _rows(
    shards: Shards,
    method: Method,
    tokenizer: Tokenizer,
    chat_template: Folder | None,
    preparing: Mapping[str, Any],
) -> Rows:
    """The rows of shards, formatted where they are not yet; of several processes one does it."""
    wanted = {name: value for name, value in preparing.items() if value is not None}
    if sources.is_formatted(shards, method):
        if extra := wanted.keys() - {"max_length"}:
            raise UsageError(
                f"{shards.path} is formatted already, so {', '.join(sorted(extra))} would have no effect",
                "Leave it out, or give the shards that `datakit convert` wrote.",
            )
        rows = sources.all_rows(shards)
        sources.check_length(rows, wanted.get("max_length"))
        return rows
    template = os.fspath(chat_template) if chat_template is not None else None
    folder = sources.formatted(shards, method, tokenizer, template, wanted)
    return sources.all_rows(datakit.load(folder, split=shards.split))


def _held_out(rows: Rows, share: float, run: Run) -> tuple[Rows, Rows | None]:
    """Rows to train on, and those that are held out."""
    rows, evaluation = sources.hold_out(rows, share)
    run.say(f"{plural(len(evaluation or ()), 'row')} of {len(rows.shards):,} held out for evaluation, by content")
    return rows, evaluation


def _account(made: Any, rows: Rows, evaluation: Rows | None, method: Method) -> None:
    """Every row that was given is in the trainer, and sees no other.

    Raises:
        InternalError: with the places of those that are not.
        UsageError: they are packed, and the trainer would take those of a sequence for one row.
    """
    if rows.shards.manifest["form"] == "packed" and not made.padding_free:
        raise UsageError(
            f"{type(made).__name__} turned padding_free off, so packed rows would attend to each other",
            "Take rows that `datakit format` wrote without --pack, or the other engine; Unsloth packs on a GPU only.",
        )
    for given, kept in ((rows, made.train_dataset), (evaluation, made.eval_dataset)):
        if given is not None and given.stream is None and len(kept) != len(given):
            places = "; ".join(islice(sources.dropped(given, kept), 10))
            raise InternalError(
                f"{method.trainer}Trainer left out {plural(len(given) - len(kept), 'row')} of {len(given)}: {places}",
                "Take them out of the shards, or format them so that the trainer takes them.",
            )


# ---------------------------------------------------------------- config and trainer


def _divided(
    trainer_class: type[Any], config_class: type[Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the trainer itself, and those of its config."""
    taken = inspect.signature(trainer_class.__init__).parameters.keys() - OWN
    taken -= inspect.signature(config_class.__init__).parameters.keys()
    own = {name: value for name, value in settings.items() if name in taken}
    return own, {name: value for name, value in settings.items() if name not in own}


def _precision(precision: Any, fp8: Mapping[str, Any] | None, device: str) -> Any:
    from trainglue import precision as precisions

    if fp8:
        if precision not in (None, "fp8"):
            raise UsageError(f"settings of fp8, and precision {precision}", "Leave out one of them.")
        try:
            precision = precisions.Fp8(**fp8)
        except TypeError as error:
            raise UsageError(f"fp8: {error}", "It has backend, recipe, fp8_format, emulate and two of amax.") from None
    return precisions.settle(precision, models.default_precision(device))


def _decided(run: Run, shards: Shards, precision: Any, device: str, mixture: Mixture | None) -> dict[str, Any]:
    """What follows from the machine, and from rows that are tokenised and fitted already."""
    from trainglue import precision as precisions

    made: dict[str, Any] = {"output_dir": str(run.folder), "dataloader_pin_memory": device == "cuda"}
    made |= precisions.arguments(precision, device)
    if mixture is not None:
        made["num_train_epochs"] = 1  # a recipe says how often its rows come
    if run.method.format_for:
        made["max_length"] = None  # the trainer cuts nothing
    if run.method.hook == "skip":
        packed = shards.manifest["form"] == "packed"
        made |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "padding_free": packed}
    multiple = (shards.manifest["plan"].get("prepared") or {}).get("pad_multiple")
    return made | ({"pad_to_multiple_of": multiple} if multiple else {})


def _stopping(patience: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What early stopping needs: a checkpoint for every evaluation, and the best of them at the end."""
    if patience is None:
        return {}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return best | ({"save_steps": given["eval_steps"]} if "eval_steps" in given else {})


def _settle_evaluation(config: Any, evaluation: Rows | None, patience: int | None) -> None:
    """A config without rows to evaluate on does not evaluate."""
    if evaluation is None:
        config.eval_strategy = "no"
        if patience is not None:
            raise UsageError("early_stopping needs rows to evaluate on", "Give eval_data, eval_split or eval_share.")


def _check_services(arguments: Mapping[str, Any]) -> None:
    """Refuse what would report or push to somewhere that cannot be reached, before anything is loaded.

    Raises:
        UsageError: with what to install, or the way to log in.
    """
    names = arguments["report_to"]
    for name in [names] if isinstance(names, str) else names:
        package = REPORTERS.get(name)
        if package is not None and find_spec(package) is None:
            raise UsageError(f"report_to {name}: {package} is not installed", f"pip install {package}")
    if arguments.get("push_to_hub") and runs.is_main():
        _check_login(arguments.get("hub_token"))


def _check_login(token: str | None) -> None:
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if token is None:
        raise UsageError("push_to_hub: nobody is logged in to the Hub", "hf auth login; or set HF_TOKEN.")
    try:
        HfApi(token=token).whoami()
    except Exception as error:  # refused, or not reached
        first = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"push_to_hub: the Hub does not let us in: {type(error).__name__}: {first}",
            "Look at the network, then hf auth login; or leave push_to_hub out and upload the folder later: hf upload.",
        ) from error


def _converted(model: Any, precision: Any, config: Any) -> Any:
    """The model in its precision; batches are padded to what that needs."""
    from trainglue import precision as precisions

    conversion = precisions.prepare(model, precision)
    if conversion.pad_multiple and hasattr(config, "pad_to_multiple_of"):
        config.pad_to_multiple_of = conversion.pad_multiple
    return conversion


def _built(of: type[Any], arguments: Mapping[str, Any]) -> Any:
    """An object of TRL; what it refuses is a wrong call."""
    try:
        return of(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{of.__name__}: {error}", "`trainglue api` lists what the installed version takes."
        ) from error


def _weights(loaded: Loaded, ref_model: Any) -> dict[str, str]:
    """What the model is, and the one that it is compared with where that was named."""
    reference = {"ref_model": models.fingerprint(loaded.reference)} if ref_model is not None else {}
    return {"model": models.fingerprint(loaded.model), **reference}


def _changed(made: Any, meant: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that a trainer has changed while it was built, as Unsloth's do.

    Raises:
        UsageError: it changed the number format.
    """
    now = made.args.to_dict()
    changed = [name for name, value in meant.items() if now.get(name, value) != value]
    if formats := {"bf16", "fp16"}.intersection(changed):
        told = ", ".join(f"{name} = {now[name]}" for name in sorted(formats))
        raise UsageError(f"{type(made).__name__} trains in another precision than asked for: {told}", "Ask for that.")
    return [f"{type(made).__name__} takes {name} = {now[name]!r} for {meant[name]!r}" for name in changed]


def _rewards(reward: Reward | Sequence[Reward] | None) -> list[Any]:
    from trainglue import rewards

    if reward is None:
        raise UsageError("GRPO needs a reward function", "`trainglue rewards` lists those that are ready.")
    named = [reward] if isinstance(reward, str) or callable(reward) else reward
    return [rewards.find(one) for one in named]


def _attach(
    made: Any,
    run: Run,
    known: dict[str, Any],
    early_stopping: int | None,
    conversion: Any,
    position: Position | None,
) -> None:
    """The callbacks of a run.

    Raises:
        UsageError: the run to go on with is another one.
    """
    from transformers import EarlyStoppingCallback

    from trainglue import callbacks

    run.check_resumed(callbacks.read(run.folder), known)
    run.clear()
    if early_stopping is not None:
        made.add_callback(EarlyStoppingCallback(early_stopping_patience=early_stopping))
    if conversion.fp8 is not None:
        from trainglue.precision.audit import Audit

        made.add_callback(Audit(conversion))
    if position is not None:
        made.add_callback(callbacks.StreamState(position))
    made.add_callback(callbacks.Record(run.folder, known))
