"""What the installed trainers accept, read from them: every option with its type and default, and what moved.

    trainglue api dpo

A config class is a dataclass, but its `__init__` may be another's: Unsloth writes one with more parameters and other
defaults. So both are read, and the signature decides.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from trainglue import engines
from trainglue.methods import method_named, resolve
from trainglue.options import DECIDED, REMOVED, RENAMED, presets, refused, where_it_went


@dataclass(frozen=True, slots=True)
class Accepted:
    """One parameter.

    Attributes:
        name, type: as the class writes them.
        default: as Python writes it, or `required`.
        ours: what trainglue makes of it: a value that it sets (here for full fine-tuning), or a sentence on what to
            write instead; empty where it leaves the default.
    """

    name: str
    type: str
    default: str
    ours: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """What one trainer of the installed TRL takes.

    Attributes:
        trainer, config: the classes, with their modules.
        options: of the config; trainglue takes each under its own name.
        arguments: of the trainer itself; trainglue gives these.
        moved: names that the config does not have, or no longer, and where they went.
    """

    method: str
    trl: str
    trainer: str
    config: str
    options: tuple[Accepted, ...]
    arguments: tuple[Accepted, ...]
    moved: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def api(method: str, *, engine: Literal["trl", "unsloth"] = "trl") -> Interface:
    """What the trainer and the config of a method accept, in the version that is installed.

    Args:
        engine: unsloth shows the classes that it puts in place of TRL's. It stays in the process.

    Raises:
        UsageError: no such method, or the installed TRL does not have it.
    """
    kind = method_named(method)
    with tempfile.TemporaryDirectory() as folder:
        engines.choose(engine, folder)
        trainer, config = resolve(method)
    ours = {name: where_it_went(name) for name in refused(kind)}
    ours |= {name: repr(value) for name, value in presets(method).items()}
    if kind.format_for:
        ours["max_length"] = "None, since rows are fitted before; as an argument of trainglue it is what they keep to"
    options = tuple(replace(option, ours=ours.get(option.name, "")) for option in _accepted(config))
    known = {option.name for option in options}
    return Interface(
        method,
        version("trl"),
        f"{trainer.__module__}.{trainer.__qualname__}",
        f"{config.__module__}.{config.__qualname__}",
        options,
        tuple(_accepted(trainer)),
        {name: where_it_went(name) for name in (*RENAMED, *DECIDED, *REMOVED) if name not in known},
    )


def _accepted(kind: type[Any]) -> Iterator[Accepted]:
    """The parameters of a class: of its `__init__`, of the next one that its `**kwargs` reach, and so on."""
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    seen: set[str] = set()
    for base in kind.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and parameter.name not in seen:
                seen.add(parameter.name)
                field = fields.get(parameter.name)
                annotation = parameter.annotation if field is None else field.type
                yield Accepted(parameter.name, _type(annotation), _default(parameter.default, field))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any, field: dataclasses.Field[Any] | None) -> str:
    """The default as it is written; a dataclass hides what a factory makes."""
    if field is not None and field.default_factory is not dataclasses.MISSING and repr(value) == "<factory>":
        return repr(field.default_factory())
    return "required" if value is inspect.Parameter.empty else repr(value)


def describe(interface: Interface) -> str:
    """The interface for a person."""
    lines = [f"{interface.method}: {interface.trainer}, TRL {interface.trl}", "", f"options of {interface.config}"]
    lines += _listed(interface.options)
    lines += ["", "arguments of the trainer, which trainglue gives"]
    lines += _listed(interface.arguments)
    lines += ["", "not options, or no longer"]
    lines += [f"  {name:{_width(interface.moved)}}  {where}" for name, where in interface.moved.items()]
    return "\n".join(lines)


def _listed(parameters: tuple[Accepted, ...]) -> Iterator[str]:
    names = _width(parameter.name for parameter in parameters)
    for parameter in parameters:
        ours = f"; trainglue: {parameter.ours}" if parameter.ours not in ("", parameter.default) else ""
        yield f"  {parameter.name:{names}}  {parameter.default}  ({parameter.type}){ours}"


def _width(names: Any) -> int:
    return max(map(len, names), default=0)
