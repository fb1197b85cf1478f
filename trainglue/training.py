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
from datakit.terminal import first_line, plural
from datakit.tokens.load import Tokenizer
from datakit.tokens.load import load as read_tokenizer
from trainglue import config as words
from trainglue import data as sources
from trainglue import engines, hooks, memory, models, options, rewards, runs, streams
from trainglue.data import Folder, Rows
from trainglue.methods import Method, check_installed, method_named, resolve
from trainglue.models import Loaded
from trainglue.runs import Run
from trainglue.streams import Position

OWN: Final = {"self", "model", "args", "train_dataset", "eval_dataset", *options.DECIDED}
"""Arguments of trainers that trainglue gives itself."""

REPORTERS: Final = ("wandb", "trackio", "tensorboard", "mlflow")
"""Words of `report_to` that are the names of the packages that they need."""

ALONE: Final = {
    "split": "The recipe names the split of each source.",
    "eval_split": "Give eval_data, a shard folder.",
    "format": "The sources of a stream are formatted already: give it to `datakit format`.",
}
"""What does nothing for a stream, and what to do instead."""

SCALAR: Final = (str, int, float)

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
    dtype: Any = None,
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
        model: a folder, a name on the Hub, or a model. One with an adapter goes on training that adapter.
        data: a shard folder, formatted or not; or the recipe of a mix, a TOML file.
        output_dir: the run folder: checkpoints, run.json, the manifest of the data.
        split: of `data`; by default train, or the only one.
        eval_data: another shard folder to evaluate on.
        eval_split: a split to evaluate on, of `eval_data` if that is given, else of `data`.
        eval_share: of the rows, held out by content; by default 0.1 where neither of the two is given; 0 for GRPO,
            packed rows, streams and an `eval_strategy` of no.
        tokenizer: a folder or name, if not that of the model.
        chat_template: a Jinja file instead of the tokenizer's own template; it is saved with the model.
        max_length: tokens that a row may have. Canonical shards are formatted to it, others must keep to it.
        format: further options of `datakit.format` for canonical shards, such as truncation.
        engine: trl, unsloth, or auto: Unsloth where it is installed and usable.
        precision: fp32, bf16, fp16, qlora, fp8 or fp8_weights; by default bf16 on a GPU that has it, else fp16; fp32 on
            a CPU.
        fp8: settings of `precision.Fp8`, such as backend and recipe.
        lora: a rank, or fields of peft's LoraConfig; without it all weights are trained, or the model's adapter.
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
    told = {name: value for name, value in locals().items() if name != "settings"}  # before there are other names
    kind = method_named(method)
    check_installed(kind)
    _check_words(kind, told, settings)
    run = Run(kind, Path(output_dir), resume, overwrite, streams.STATE if streaming else runs.STATE)
    folder, trained = _opened(data, kind, split, streaming)
    held = _evaluation_shards(kind, folder, eval_data, eval_split)
    form, multiple = _fitted(trained[0], kind, format or {})
    share, preset = defaults(kind, told, settings, form)
    vocabulary, differences = _tokenizer(tokenizer, model, ref_model)
    template = models.template_text(chat_template, vocabulary.chat_template)
    for own in (*trained, *([held] if held else [])):
        if sources.is_formatted(own, kind):
            sources.check_prepared(own, vocabulary, template, kind)
    run.check(
        models.name_of(one)
        for one in (model, ref_model, tokenizer, chat_template, data, eval_data, *(own.path for own in trained))
    )

    chosen, why = engines.choose(engine, run.folder)
    run.say(why, *differences)
    models.check_lora(lora)
    _check_prompt_length(kind, chosen, max_length)
    scoring = rewards.several(reward) if kind.name == "grpo" else []
    trainer_class, config_class = resolve(method)
    of_trainer, of_config = _divided(trainer_class, config_class, settings)
    model_options = of_config.pop("model_init_kwargs", None) or {}
    device = models.device_type(bool(of_config.get("use_cpu")))
    asked = _precision(precision, fp8, device)
    whole = {**preset, **decided(kind, run.folder, form, multiple, asked, device)}
    arguments, notes = options.settings(config_class, kind, of_config, whole)
    run.say(*notes)
    _check_services(arguments, device)
    config = _built(config_class, arguments)
    run.say(*_changed(config, config, arguments))

    def rows_of(own: Shards) -> Rows:
        return _rows(own, kind, vocabulary, chat_template, {"max_length": max_length, **(format or {})}, run)

    if streaming:
        rows, position = streams.rows(data, kind, config, run.checkpoint(), max_length)
    else:
        rows, position = rows_of(trained[0]), None
    rows, evaluation = _held_out(rows, share, run) if share else (rows, rows_of(held) if held else None)
    sources.check_rows(rows)
    rewards.check_prompts(scoring, template, rows, evaluation)
    _settle_evaluation(config, evaluation, early_stopping)
    longest = _settle_length(config, kind, [*rows.lengths, *(evaluation.lengths if evaluation else ())], max_length)

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
        checkpointing=bool(config.gradient_checkpointing),
        options=model_options,
        seed=config.seed,
        reference=not getattr(config, "precompute_ref_log_probs", False),
        ref_model=ref_model,
    )
    models.check_vocabulary(loaded, vocabulary)
    _, stop = models.stop_at(loaded.model, processing, models.end_of_turn(processing))
    run.say(*notes, *loaded.notes, *stop)
    weights = _weights(loaded, model, ref_model)
    conversion = _converted(loaded.model, asked, config)
    run.say(f"precision {conversion.describe()}, on {device}")

    parts = {
        "peft_config": loaded.peft_config,
        "ref_model": loaded.reference,
        "reward_funcs": [rewards.checked(one) for one in scoring] or None,
    }
    of_trainer |= {name: part for name, part in parts.items() if part is not None}
    meant = {name: getattr(config, name) for name in arguments}
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
    run.say(*_changed(made, made.args, meant))
    made.resume, made.streamed = os.fspath(run.checkpoint() or "") or None, streaming
    _advise(made, rows, evaluation, asked)
    known = {
        **runs.facts(made, kind, os.fspath(data), rows, evaluation),
        "engine": chosen,
        "precision": str(asked),
        "weights": weights,
        "told": runs.recorded(
            {**told, "dtype": dtype and str(dtype).removeprefix("torch."), "reward": scoring or None}
        ),
    }
    _attach(made, run, known, early_stopping, conversion, position)
    run.keep_manifest(rows)
    return made


def _check_words(method: Method, told: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what run.toml refuses, and words that would do nothing.

    Raises:
        UsageError: with what to write instead.
    """
    sources.check_path(told["data"])
    if told["eval_data"] is not None:
        sources.check_path(told["eval_data"])
    plain = {name: value for name, value in told.items() if isinstance(value, str | int | float | Mapping)}
    words.check_values(plain, "trainer()")
    words.check_method(method.name, [name for name, value in told.items() if value is not None], "trainer()")
    _check_amount(settings)
    if not told["streaming"]:
        return
    if not streams.is_recipe(told["data"]):
        raise UsageError(
            f"streaming and {told['data']}", "The recipe of a mix is streamed; a folder is memory-mapped anyway."
        )
    for name, instead in ALONE.items():
        if told[name] is not None and (name != "eval_split" or told["eval_data"] is None):
            raise UsageError(f"{name} and streaming exclude each other", instead)


def _check_amount(settings: Mapping[str, Any]) -> None:
    """Refuse a run of no steps."""
    if settings.get("max_steps") == 0:
        raise UsageError("max_steps 0", "A number of updates; -1 goes by num_train_epochs.")
    if settings.get("num_train_epochs") == 0 and settings.get("max_steps", -1) < 0:
        raise UsageError("num_train_epochs 0", "A number above 0, such as 0.5 or 3.")


# ---------------------------------------------------------------- what a run has by default


def defaults(
    method: Method, told: Mapping[str, Any], settings: Mapping[str, Any], form: str
) -> tuple[float, dict[str, Any]]:
    """What a run has where nothing is said of it: the share of rows that is held out, and options of the config.

    Args:
        method: none is held out for GRPO.
        told: arguments of `trainer`, as far as they are known.
        settings: options of the config, as given.
        form: of the rows that the trainer gets; packed ones have no ids to divide them by.

    Raises:
        UsageError: a share is asked for, and there is nothing to take it of, or no need.
    """
    held = any(told.get(name) is not None for name in ("eval_data", "eval_split"))
    share, streaming, patience = told.get("eval_share"), told.get("streaming"), told.get("early_stopping")
    instead = "Give eval_data." if streaming else "Give eval_data, eval_split or eval_share."
    if share and streaming:
        raise UsageError("eval_share and a stream exclude each other", "Give eval_data, or leave out streaming.")
    if share and held:
        raise UsageError("eval_share and other rows to evaluate on exclude each other", "Leave out one of them.")
    if share is None:
        never = "no" in (settings.get("eval_strategy"), settings.get("evaluation_strategy"))
        none = method.name == "grpo" or form == "packed" or streaming or held or never
        share = 0.0 if none else options.HOLD_OUT
    lora = bool(told.get("lora") or models.adapter_of(told.get("model")))
    made = options.presets(method.name, lora=lora, evaluates=bool(share or held))
    if streams.is_recipe(told.get("data") or ""):
        made["num_train_epochs"] = 1  # it says itself how often its rows come
    if patience is not None and not (share or held):
        raise UsageError("early_stopping needs rows to evaluate on", instead)
    if patience is not None:  # a checkpoint for every evaluation, and the best of them at the end
        made |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
        made["restore_callback_states_from_checkpoint"] = True  # the evaluations that were not better so far
        for one, other in (("eval_steps", "save_steps"), ("eval_strategy", "save_strategy")):
            given = settings.get(one, settings.get(other))
            made |= {one: given, other: given} if given is not None else {}
    return share, made


def checked(
    config_class: type[Any], method: Method, settings: Mapping[str, Any], preset: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a run, after a config was built of them and thrown away; the machine may be another one.

    Raises:
        UsageError: as `trainer`.
    """
    _check_amount(settings)
    whole = {**preset, **decided(method, "unused", "", None, "fp32", "cpu")}
    arguments, _ = options.settings(config_class, method, settings, whole)
    _built(config_class, arguments)
    return arguments


# ---------------------------------------------------------------- data


def _opened(data: Folder, method: Method, split: str | None, streaming: bool) -> tuple[Folder, list[Shards]]:
    """The folder of the rows, which a written recipe gets, and the shards to train on; of a stream, its sources."""
    if streaming:
        return data, streams.opened(data, method)
    folder = streams.written(data) if streams.is_recipe(data) else data
    return folder, [sources.open_shards(folder, method, sources.training_split(folder, split))]


def _evaluation_shards(method: Method, data: Folder, eval_data: Folder | None, eval_split: str | None) -> Shards | None:
    if eval_data is None and eval_split is None:
        return None
    shards = sources.open_shards(data if eval_data is None else eval_data, method, eval_split)
    splits = shards.manifest["splits"]
    if eval_split is None and len(splits) > 1:
        raise UsageError(
            f"{eval_data} has the splits {', '.join(splits)}", "Name the one to evaluate on: --eval-split NAME."
        )
    return shards


def _fitted(shards: Shards, method: Method, preparing: Mapping[str, Any]) -> tuple[str, int | None]:
    """The form of the rows that the trainer is going to get, and the multiple that they are padded to."""
    form = str(shards.manifest["form"])
    if not sources.is_formatted(shards, method):
        return "packed" if preparing.get("pack") else form, preparing.get("pad_multiple")
    return form, (shards.manifest["plan"].get("prepared") or {}).get("pad_multiple")


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
    run: Run,
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
    rows = sources.all_rows(
        datakit.load(sources.formatted(shards, method, tokenizer, template, wanted), split=shards.split)
    )
    run.say(*sources.left_out(rows.shards, shards.path))
    return rows


def _held_out(rows: Rows, share: float, run: Run) -> tuple[Rows, Rows | None]:
    """Rows to train on, and those that are held out."""
    rows, evaluation = sources.hold_out(rows, share)
    of = f"of {plural(len(rows.shards), 'row')}"
    if evaluation is None:
        run.say(f"no evaluation: none {of} falls into the share of {share:g}; raise eval_share, or give eval_data")
    else:
        run.say(f"{len(evaluation):,} {of} held out for evaluation, by content")
    return rows, evaluation


def _advise(made: Any, rows: Rows, evaluation: Rows | None, precision: Any) -> None:
    """What the trainer is to say where memory ends."""
    adapted = hasattr(made.model, "peft_config")
    least = 2 if getattr(made, "calculate_KL", False) else 1  # KTO compares with the neighbour in a batch
    made.advice = lambda: memory.for_training(rows.lengths, made.args, least=least, lora=adapted, precision=precision)
    made.advice_to_evaluate = lambda: memory.for_evaluation(evaluation.lengths if evaluation else {}, made.args)


def _account(made: Any, rows: Rows, evaluation: Rows | None, method: Method) -> None:
    """Every row that was given is in the trainer, and sees no other.

    Raises:
        InternalError: with the places of those that are not.
        UsageError: they are packed, and the trainer would take those of a sequence for one row; or too few to be taken;
            or no weight would be trained on them.
    """
    models.check_trainable(made.model)
    if len(rows) < (at_once := runs.rows_at_once(made.args, method)):
        grpo = "Lower per_device_train_batch_size or gradient_accumulation_steps, or raise num_generations."
        other = "Lower per_device_train_batch_size, or leave out dataloader_drop_last."
        raise UsageError(
            f"{method.trainer}Trainer takes {at_once} rows at a time and leaves out what does not fill them; "
            f"there are {len(rows)}",
            grpo if method.name == "grpo" else other,
        )
    for given, kept in ((rows, made.train_dataset), (evaluation, made.eval_dataset)):
        if given is None:
            continue
        if given.shards.manifest["form"] == "packed" and not made.padding_free:
            raise UsageError(
                f"{given.shards.path}: its rows are packed and would attend to each other, since padding_free is off",
                "Pack the rows to train on and those to evaluate on, or neither; Unsloth packs on a GPU only.",
            )
        if given.stream is None and len(kept) != len(given):
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

    if fp8 is not None:
        if precision not in (None, "fp8"):
            raise UsageError(f"settings of fp8, and precision {precision}", "Leave out one of them.")
        try:
            precision = precisions.Fp8(**fp8)
        except TypeError as error:
            raise UsageError(f"fp8: {error}", "It has backend, recipe, fp8_format, emulate and two of amax.") from None
    return precisions.settle(precision, models.default_precision(device))


def decided(
    method: Method, folder: Folder, form: str, multiple: int | None, precision: Any, device: str
) -> dict[str, Any]:
    """What follows from the machine, and from rows that are tokenised and fitted already.

    Args:
        folder: of the run.
        form: of the rows that the trainer gets.
        multiple: that they are padded to.
    """
    from trainglue import precision as precisions

    made: dict[str, Any] = {"output_dir": os.fspath(folder), "dataloader_pin_memory": device == "cuda"}
    made |= precisions.arguments(precision, device)
    if method.format_for:
        made["max_length"] = None  # the trainer cuts nothing
    if method.hook == "pair_rows":
        made["remove_unused_columns"] = False  # TRL sets it, and warns of it
    if method.hook == "skip":
        kept = {"skip_prepare_dataset": True}
        made |= {"dataset_kwargs": kept, "packing": False, "padding_free": form == "packed"}
    return made | ({"pad_to_multiple_of": multiple} if multiple else {})


def _settle_evaluation(config: Any, evaluation: Rows | None, patience: int | None) -> None:
    """A config without rows to evaluate on does not evaluate."""
    if evaluation is None:
        config.eval_strategy = "no"
        if patience is not None:
            raise UsageError("early_stopping, and no row was held out", "Raise eval_share, or give eval_data.")


def _settle_length(config: Any, method: Method, lengths: Sequence[int], given: int | None) -> int:
    """The tokens of the longest row, which ORPO and CPO want as a number."""
    longest = max(lengths, default=given or 2048)
    if method.hook == "pair_rows":
        config.max_length = longest
    return longest


def _check_services(arguments: Mapping[str, Any], device: str) -> None:
    """Refuse what needs an accelerator, or a place to report or push to, that is not here, before anything is loaded.

    Raises:
        UsageError: with what to install, or the way to log in.
    """
    if device == "cpu" and arguments.get("activation_offloading"):
        raise UsageError("activation_offloading moves activations from an accelerator; this is a CPU", "Leave it out.")
    names = arguments["report_to"]
    for name in [names] if isinstance(names, str) else names or ():
        if name in REPORTERS and find_spec(name) is None:
            raise UsageError(f"report_to {name}: {name} is not installed", f"pip install {name}")
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
        raise UsageError(
            f"push_to_hub: the Hub does not let us in: {type(error).__name__}: {first_line(error)}",
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


def _weights(loaded: Loaded, model: Any, ref_model: Any) -> dict[str, str]:
    """What the model is, with the adapter that goes on, and the one that it is compared with where that was named."""
    reference = {"ref_model": models.fingerprint(loaded.reference, True)} if ref_model is not None else {}
    return {"model": models.fingerprint(loaded.model, bool(models.adapter_of(model))), **reference}


def _changed(by: Any, config: Any, meant: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that the config or the trainer has changed while it was built, as Unsloth's do.

    Words that transformers makes lists or objects of, such as those of `report_to`, are not compared.

    Raises:
        UsageError: it changed the number format.
    """
    now = {name: getattr(config, name) for name in meant}
    plain = [name for name in meant if isinstance(meant[name], SCALAR) and isinstance(now[name], SCALAR)]
    changed = [name for name in plain if now[name] != meant[name]]
    if formats := {"bf16", "fp16"}.intersection(changed):
        told = ", ".join(f"{name} = {now[name]}" for name in sorted(formats))
        raise UsageError(f"{type(by).__name__} trains in another precision than asked for: {told}", "Ask for that.")
    return [f"{type(by).__name__} takes {name} = {_word(now[name])} for {_word(meant[name])}" for name in changed]


def _word(value: Any) -> str:
    """A value as one types it; transformers makes enumerations of words."""
    return repr(getattr(value, "value", value))


def _check_prompt_length(method: Method, engine: str, max_length: int | None) -> None:
    """Refuse a length that nothing would be cut to; Unsloth sets the model up for it."""
    if method.name == "grpo" and engine == "trl" and max_length is not None:
        raise UsageError(
            "max_length: TRL cuts no prompt of GRPO", "Leave it out; max_completion_length limits answers."
        )


def _attach(
    made: Any, run: Run, known: dict[str, Any], early_stopping: int | None, conversion: Any, position: Position | None
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
    record = callbacks.Record(run.folder, known)
    made.add_callback(record)
    made.watched = record.watched
