"""From a package to a deployment: what may be served, and a version's table in a deployment file."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from ..guardrails.policy import Policy
from ..trainer.models.finding import verified_model
from .deployment import VersionTable, parse_deployment
from .keys import write_whole
from .package import Package, is_package, read_package
from .routes import served_name


def servable_model(table: VersionTable, policy: Policy | None) -> Path:
    """The model folder of a version, every file held to its digest, and a package to its verdict.

    policy: what the service holds requests to. Raises ValueError for a package whose verdict does not speak for it as it would be served,
    unless that is forced.
    """
    folder = verified_model(table.model)
    if not is_package(folder):
        if table.forced:
            raise ValueError(f"forced has no effect on {table.model}, which is no package and has no verdict; remove it")
        return folder
    why = objection(read_package(folder), policy) or ("its verdict is about the weights without adapters" if table.adapters else "")
    if why and not table.forced:
        raise ValueError(f'{table.model} is not served: {why}; write forced = "REASON" beside it to serve it all the same')
    return folder


def objection(package: Package, policy: Policy | None) -> str:
    """Why a package's verdict does not speak for it behind this policy; "" when it does."""
    verdict = package.verdict
    if not verdict.passed:
        return f"its verdict is not passed: {verdict.failed}"
    served = policy.id if policy is not None else "no policy"
    return "" if verdict.policy == served else f"its verdict is about {verdict.policy}, and the service has {served}"


def promote(package: Path, file: Path, model: str, version: str, weight: float = 0.0, shadow: float = 0.0, force: str = "") -> VersionTable:
    """Write a package into a deployment file as a version of a model; a deployment that runs follows.

    shadow: the share of callers whose requests it gets a copy of, instead of a weight. Raises ValueError when the package does not hold
    together, its verdict is not passed and `force` gives no reason, the version is there already, or the file would be none.
    """
    if weight and shadow:
        raise ValueError("weight and shadow do not go together: a version with a shadow answers nobody but who asks for it by name")
    read = read_package(package)
    if not read.verdict.passed and not force:
        raise ValueError(
            f"{package} is not promoted: its verdict is not passed: {read.verdict.failed}; --force REASON does it all the same"
        )
    table = VersionTable(model=str(package.resolve()), weight=weight, shadow=shadow, forced="" if read.verdict.passed else force)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if served_name(model, version) in _served(text, str(file)):
        raise ValueError(f"{file} has a version {version!r} of {model!r} already; give the new one another name")
    said = {"model": table.model, "weight": table.weight}
    said |= {key: value for key, value in (("shadow", table.shadow), ("forced", table.forced)) if value}
    lines = [
        f"[models.{json.dumps(model)}.versions.{json.dumps(version)}]",
        *(f"{key} = {json.dumps(value)}" for key, value in said.items()),
    ]
    changed = (f"{text.rstrip()}\n\n" if text.strip() else "") + "\n".join(lines) + "\n"
    if parse_deployment(changed, str(file)).served()[served_name(model, version)] != table:
        raise ValueError(f"{file} cannot be added to safely; write the version's table yourself")
    write_whole(file, changed, file.stat().st_mode & 0o777 if file.exists() else 0o644)
    return table


def _served(text: str, file: str) -> Collection[str]:
    """The versions that a file has. A file that is none yet, such as one with [service] alone, has none; what else is wrong with it is said
    of the whole."""
    try:
        return parse_deployment(text, file).served()
    except ValueError:
        return ()
