"""The one loader: a preset or suite by name, or the YAML file of an experiment or suite, becomes a ``Suite``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.plan import overrides
from harness.plan.choice import Choice
from harness.plan.errors import Assigned, ConfigError, config_error, suggestion
from harness.plan.experiment import Experiment, validate
from harness.plan.suite import Suite, SuiteFile

_PRESETS = Path(__file__).parent / "presets"
_SUITES = Path(__file__).parent / "suites"
_OF_EXPERIMENTS = {*Experiment.model_fields, "output_tokens"} - {*SuiteFile.model_fields}


def load(named: str, assignments: Sequence[str] = ()) -> Suite:
    """What ``named`` names, with ``assignments`` (``harness.plan.overrides``) applied to its YAML first.

    Args:
        named: a preset, a suite, or a path: of an existing file, or ending in ``.yaml`` or ``.yml``.
        assignments: ``key=value`` each.  In a suite, a field that only experiments have changes all of them.

    Raises:
        ConfigError: nothing of that name, not YAML, or a field out of place.
        OverrideError: an assignment that cannot be applied.
    """
    path = _find(named)
    payload, assigned = _read(path), {text: overrides.path_of(text) for text in assignments}
    if "experiments" in payload:
        for_all = {text: place for text, place in assigned.items() if place and place[0] in _OF_EXPERIMENTS}
        payload = overrides.apply(payload, [text for text in assignments if text not in for_all])
        fields = _suite(payload, str(path), assigned, for_all)
    else:
        fields = _suite_of_one(validate(overrides.apply(payload, assignments), str(path), assigned))
    return Suite(**fields, source=named, assignments=tuple(assignments))


def compose(choice: Choice, assignments: Sequence[str] = ()) -> Suite:
    """An experiment of the systems that the command line names, without a file.

    Raises:
        ConfigError: no system is named, or a field out of place.
        OverrideError: an assignment that cannot be applied.
    """
    assigned = {text: overrides.path_of(text) for text in assignments}
    experiment = validate(overrides.apply(choice.experiment(), assignments), "the command line", assigned)
    return Suite(**_suite_of_one(experiment), source="", assignments=tuple(assignments), choice=choice.words())


def presets() -> dict[str, Experiment]:
    """The experiments that come with this package, by name."""
    return {name: load(name).experiments[0] for name in _names(_PRESETS)}


def suites() -> dict[str, Suite]:
    """The suites that come with this package, by name."""
    return {name: load(name) for name in _names(_SUITES)}


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _find(named: str) -> Path:
    packaged = {name: folder / f"{name}.yaml" for folder in (_PRESETS, _SUITES) for name in _names(folder)}
    path = Path(named)
    if named in packaged and not path.is_file():
        return packaged[named]
    if path.suffix in (".yaml", ".yml") or (named and path.exists()):
        return path
    hint = suggestion(named, packaged)
    raise ConfigError(f"unknown preset or suite {named!r}{hint or ': use one of ' + ', '.join(packaged)}")


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which no mapping names a key twice: PyYAML would keep the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        payload = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): name another file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad dates, huge integers
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(payload, dict):
        raise ConfigError(f"{path} is no experiment or suite: write its fields as key: value")
    return payload


def _suite_of_one(experiment: Experiment) -> dict[str, Any]:
    """Without a title: the report shows the experiment's own."""
    return {"name": experiment.name, "title": None, "experiments": [experiment], "single": True}


def _suite(payload: dict[str, Any], where: str, assigned: Assigned, for_all: Assigned) -> dict[str, Any]:
    fields = dict(payload)
    entries, defaults = fields["experiments"], fields.pop("defaults", None) or {}
    if not isinstance(entries, list) or not isinstance(defaults, dict):
        raise ConfigError(f"{where}: 'experiments' must be a list and 'defaults' a mapping")
    fields["experiments"] = [
        _entry(entry, defaults, f"{where}: experiments.{number}", _within(assigned, number), for_all)
        for number, entry in enumerate(entries)
    ]
    try:
        return dict(SuiteFile.model_validate(fields))
    except ValidationError as error:
        raise config_error(error, where, SuiteFile.model_fields, assigned) from error


def _entry(entry: Any, defaults: Mapping[str, Any], where: str, assigned: Assigned, for_all: Assigned) -> Experiment:
    """An experiment of a suite: the suite's defaults, the named preset's fields, the entry's own, then ``for_all``."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is not an experiment: give its fields, or 'preset: NAME'")
    own = dict(entry)
    preset = own.pop("preset", None)
    fields = overrides.apply({**defaults, **_preset_fields(preset), **own}, list(for_all))
    return validate(fields, where, {**assigned, **for_all})


def _preset_fields(name: Any) -> dict[str, Any]:
    if name is None:
        return {}
    known = _names(_PRESETS)
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}{suggestion(str(name), known)}: use one of {', '.join(known)}")
    fields: dict[str, Any] = _read(_PRESETS / f"{name}.yaml")
    return fields


def _within(assigned: Assigned, number: int) -> dict[str, Sequence[str]]:
    """Assignments to one experiment of a suite, or to the defaults, with paths from the experiment on."""
    found = {}
    for text, path in assigned.items():
        if list(path[:2]) == ["experiments", str(number)]:
            found[text] = path[2:]
        elif path[:1] == ["defaults"]:
            found[text] = path[1:]
    return found
