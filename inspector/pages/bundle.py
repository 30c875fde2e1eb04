"""The pages as a folder of files, to send to somebody: no server, no network, the same templates.

    DIR/index.html                                      the runs, and how they compare
    DIR/models.html                                     their checkpoints
    DIR/runs/NAME/index.html                            one run
    DIR/runs/NAME/report.html                           its report, if it has one
    DIR/runs/NAME/steps.html                            its steps and evaluations
    DIR/runs/NAME/rft.000012.train.sampled/index.html   the episodes of one, worst first
    DIR/runs/NAME/rft.000012.train.sampled/7.html       one episode; in 7.drawing.html as its environment draws it
    DIR/runs/NAME/rft.000012.train.sampled/group-2.html the attempts at one task, side by side

What is large is left out beyond a limit, the latest steps last, and every page says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...rollout.store.moments import Moment, moments
from ...rollout.store.recorded import in_order
from ..comparing import MOST, side_by_side
from ..database import Database
from ..drift import RunMoment, drift_between
from ..library import Library
from ..listing import GROUP, PLACE, Wanted
from ..own_view import framed
from ..runs import read_run
from ..suspects import suspects_of
from .groups import group_view
from .links import STATIC
from .progress import progress_of
from .runs import RunLine, list_runs
from .views import (
    MOVES,
    NOTHING_LISTED,
    drawing_of,
    drawn,
    drift_of,
    episode_view,
    library_of,
    models_view,
    report_of,
    run_view,
    templates,
)

POLICY = "; ".join((
    "default-src 'none'", "style-src 'self'", "script-src 'self'", "img-src 'self'", "frame-src 'self'", "form-action 'none'",
    "base-uri 'none'",
))  # fmt: skip
"""The policy of every page; who may frame one is the server's to say."""
ASSETS = ("style.css", "page.js", "icon.svg")
LISTED = 20
"""Episodes that are listed for each that may have a page."""
TABLE = 5000
"""Episodes that the list of one step may have."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """What a bundle holds: of how many runs, and how many of how many rollouts have a page."""

    runs: int
    pages: int
    rollouts: int


@dataclass(frozen=True)
class Contents:
    """Which pages a bundle has. tables: of each run, the moments that are listed. episodes: (run, *PLACE) -> its page. groups: (run,
    *GROUP) -> the page of a task's attempts, where there are several and one has a page. drifts: (before, after) -> its page, for the first
    and the last evaluation of a run in each mode, listed or not. compared: whether the runs are."""

    tables: dict[str, dict[Moment, list[dict[str, Any]]]] = field(default_factory=dict)
    episodes: dict[tuple[Any, ...], str] = field(default_factory=dict)
    groups: dict[tuple[Any, ...], str] = field(default_factory=dict)
    drifts: dict[tuple[str, str], str] = field(default_factory=dict)
    compared: bool = False


@dataclass(frozen=True)
class Bundle:
    """Addresses in a bundle, as seen from a page so many folders deep. Example: `Bundle(Contents(), 2).runs() == "../../index.html"`."""

    contents: Contents
    depth: int
    served = False

    def _to(self, path: str) -> str:
        return "../" * self.depth + quote(path)

    def asset(self, name: str) -> str:
        return self._to(f"static/{name}")

    def runs(self) -> str:
        return self._to("index.html")

    def run(self, name: str) -> str:
        return self._to(f"runs/{name}/index.html")

    def report(self, run: str) -> str:
        return self._to(report_page(run))

    def episodes(self, run: str, **asked: Any) -> str | None:
        """The list that was asked for: the latest moment that fits, or the overview when none is named; None for what needs a search."""
        asked.pop("order", None)
        if not asked:
            return self._to(f"runs/{run}/steps.html")
        if asked.keys() - {"phase", "step", "split", "mode"}:
            return None
        fits = [one for one in self.contents.tables.get(run, ()) if all(getattr(one, name) == value for name, value in asked.items())]
        train = [one for one in fits if one.split == "train"] or fits
        return self._to(table_page(run, train[-1])) if fits else None

    def episode(self, run: str, row: Mapping[str, Any], **_: Any) -> str | None:
        page = self.contents.episodes.get((run, *(row[name] for name in PLACE)))
        return self._to(page) if page else None

    def drawing(self, run: str, row: Mapping[str, Any]) -> str | None:
        page = self.contents.episodes.get((run, *(row[name] for name in PLACE)))
        return self._to(drawing_page(page)) if page else None

    def group(self, run: str, row: Mapping[str, Any], **_: Any) -> str | None:
        page = self.contents.groups.get((run, *(row[name] for name in GROUP)))
        return self._to(page) if page else None

    def compare(self) -> str | None:
        return self._to("compare.html") if self.contents.compared else None

    def models(self) -> str:
        return self._to("models.html")

    def drift(self, before: str, after: str, task: str = "") -> str | None:
        page = self.contents.drifts.get((str(before), str(after)))
        return self._to(page) if page and not task else None


def table_page(run: str, moment: Moment) -> str:
    """Where the list of a moment is. Example: `runs/nano-1/rft.000012.train.sampled/index.html`."""
    return f"runs/{run}/{moment.file.removesuffix('.parquet')}/index.html"


def report_page(run: str) -> str:
    """Where the report of a run is. Example: `report_page("nano-1") == "runs/nano-1/report.html"`."""
    return f"runs/{run}/report.html"


def drawing_page(page: str) -> str:
    """Where the drawing of an episode's page is. Example: `drawing_page("runs/a/rft.1/7.html") == "runs/a/rft.1/7.drawing.html"`."""
    return f"{page.removesuffix('.html')}.drawing.html"


def write_bundle(root: Path, target: Path, most: int, db: Database, said: Callable[[str], None] = lambda _: None) -> Bundled:
    """Write the bundle of a run, or of all runs in a folder, into a new folder, whole or not at all.

    most: episodes that get a page, of all runs together, the latest steps first; each run gets one at least. said: told of each run as it
    begins.

    Raises ValueError when there is no run, the target exists, or a file cannot be read.

    Example: `write_bundle(Path("runs/nano-1"), Path("nano-1.bundle"), 1000, Database())`.
    """
    lines = [replace(line, live=False) for line in list_runs(root)]
    if not lines:
        raise ValueError(f"{root} is no run folder, and holds none")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--bundle: {target} is there already; give a folder that is not")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        done = _write(lines, partial, most, db, said)
        partial.chmod(0o755)  # what mkdtemp makes is for its owner alone
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _write(lines: Sequence[RunLine], home: Path, most: int, db: Database, said: Callable[[str], None]) -> Bundled:
    contents, made = _contents(lines, most, db)
    note = _note(lines, contents, made.rollouts)
    jinja = templates()

    def page(path: str, template: str, **values: Any) -> None:
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        to = Bundle(contents, path.count("/"))
        file.write_text(drawn(jinja, template, to, policy=POLICY, note=note, **values), encoding="utf-8")

    (home / "static").mkdir()
    for name in ASSETS:
        shutil.copyfile(STATIC / name, home / "static" / name)
    page("index.html", "runs", runs=lines, reached=progress_of(lines), watched=False)
    page("models.html", "models", found=models_view(lines))
    if contents.compared:
        page("compare.html", "compare", found=side_by_side([line.path for line in lines]))
    for line in lines:
        said(line.name)
        page(f"runs/{line.name}/index.html", "run", index="", **run_view(line, library_of(line, db)))
        report = report_of(line)
        if report is not None:
            (home / report_page(line.name)).write_text(report, encoding="utf-8")
        page(f"runs/{line.name}/steps.html", "steps", line=line, rows=_steps(line, contents.tables[line.name], db))
        for path, values in _tables(line, contents.tables[line.name], db):
            page(path, "episodes", **values)
    for path, values in _episodes(lines, contents, db):
        page(path, "episode", **values)
        view = drawing_of(values["line"], values["e"]) if values["drawn"] else None
        if view is not None:
            (home / drawing_page(path)).write_text(framed(view), encoding="utf-8")
    for path, values in _groups(lines, contents, db):
        page(path, "group", **values)
    for path, values in _drifts(lines, contents, db):
        page(path, "drift", **values)
    return made


def _contents(lines: Sequence[RunLine], most: int, db: Database) -> tuple[Contents, Bundled]:
    """What is in, the latest steps of each run first."""
    contents = Contents(compared=1 < len(lines) <= MOST)
    rollouts = [library_of(line, db).count(Wanted()) for line in lines]
    for line, share in zip(lines, _shares(rollouts, most), strict=True):
        _put_episodes(contents, line, share, db)
        stored = {str(RunMoment(line.name, one)) for one in _in_order(line)}
        for mode, first, last in drift_of(read_run(line.path)):
            if {first, last} <= stored:
                contents.drifts[first, last] = f"runs/{line.name}/drift-{mode}.html"
    return contents, Bundled(len(lines), len(contents.episodes), sum(rollouts))


def _shares(rollouts: Sequence[int], most: int) -> list[int]:
    """How many pages each run gets: equally many, but that what one has no episodes for is the others', and one at least.

    Example: `_shares([0, 500, 10], 100) == [0, 90, 10]`.
    """
    shares, left = [0] * len(rollouts), max(most, len(rollouts))
    ascending = sorted(range(len(rollouts)), key=rollouts.__getitem__)
    for position, run in enumerate(ascending):
        shares[run] = min(rollouts[run], left // (len(ascending) - position))
        left -= shares[run]
    return shares


def _put_episodes(contents: Contents, line: RunLine, share: int, db: Database) -> None:
    """Put the lists of a run's latest moments in, and so many pages of episodes with those of their groups."""
    library, pages, listed = library_of(line, db), 0, 0
    tables: dict[Moment, list[dict[str, Any]]] = {}
    there = _in_order(line)
    for moment in reversed(there):
        if listed >= LISTED * max(share, 1):
            break
        rows = _rows(library, moment)
        tables[moment] = rows
        listed += len(rows)
        shown = rows[: share - pages]
        pages += len(shown)
        for number, row in enumerate(shown):
            key = (line.name, *(row[name] for name in PLACE))
            contents.episodes[key] = table_page(line.name, moment).replace("index.html", f"{number}.html")
        several = [task for task, attempts in Counter(row["task"] for row in rows).items() if attempts > 1]
        for number, task in enumerate(sorted({row["task"] for row in shown}.intersection(several))):
            key = (line.name, moment.phase, moment.step, moment.split, moment.mode, task)
            contents.groups[key] = table_page(line.name, moment).replace("index.html", f"group-{number}.html")
    contents.tables[line.name] = {moment: tables[moment] for moment in there if moment in tables}


def _in_order(line: RunLine) -> list[Moment]:
    """The moments of a run as they came."""
    return in_order(line.path, (one for _, one in moments(line.path / "episodes")))


def _rows(library: Library, moment: Moment) -> list[dict[str, Any]]:
    """The episodes of a moment, the worst first."""
    exact = {"phase": moment.phase, "split": moment.split, "mode": moment.mode}
    return library.listed(Wanted(exact, step=moment.step, order="worst", most=TABLE))


def _steps(line: RunLine, tables: Iterable[Moment], db: Database) -> list[dict[str, Any]]:
    """The moments as rows of the overview, the latest first."""
    library = library_of(line, db)
    return [{name: getattr(one, name) for name in PLACE[:-1]} | library.totals(one) for one in tables][::-1]


def _tables(line: RunLine, tables: Mapping[Moment, list[dict[str, Any]]], db: Database) -> Iterator[tuple[str, dict[str, Any]]]:
    """The list of each moment, with links to the one before and the one after."""
    names, library = [moment.file.removesuffix(".parquet") for moment in tables], library_of(line, db)
    for i, (moment, rows) in enumerate(tables.items()):
        near = {j: f"../{quote(names[j])}/index.html" for j in (i - 1, i + 1) if 0 <= j < len(names)}
        total = len(rows) if len(rows) < TABLE else library.totals(moment)["episodes"]
        cut = f"The list is cut: it has the {len(rows):,} of the lowest reward." if len(rows) < total else ""
        shown: dict[str, Any] = {"line": line, "rows": rows, "total": total, "page": i, "first": 0, "links": near, "index": cut}
        yield table_page(line.name, moment), {**NOTHING_LISTED, **shown, "said": [""] * len(rows)}


def _episodes(lines: Sequence[RunLine], contents: Contents, db: Database) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each episode that has a page."""
    for line in lines:
        library = library_of(line, db)
        for moment, rows in contents.tables[line.name].items():
            for row in rows:
                path = contents.episodes.get((line.name, *(row[name] for name in PLACE)))
                found = library.one(moment.phase, moment.step, moment.split, moment.mode, row["episode"]) if path else None
                if path and found:
                    yield path, episode_view(line, found, _group(library, moment, row["task"], rows))


def _group(library: Library, moment: Moment, task: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts at a task at a moment: out of its rows, where these are all of them."""
    if len(rows) == TABLE:
        return library.group(moment.phase, moment.step, moment.split, moment.mode, task)
    return sorted((one for one in rows if one["task"] == task), key=lambda one: one["sample"])


def _groups(lines: Sequence[RunLine], contents: Contents, db: Database) -> Iterator[tuple[str, dict[str, Any]]]:
    """The attempts at each task that have a page together."""
    by_name = {line.name: (line, library_of(line, db)) for line in lines}
    for (run, *place), path in contents.groups.items():
        line, library = by_name[run]
        attempts = library.group(*place)
        if attempts:
            yield path, group_view(line, library, attempts)


def _drifts(lines: Sequence[RunLine], contents: Contents, db: Database) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first evaluation against the last, for each mode of each run."""
    runs = {line.name: line.path for line in lines}
    stores = {line.name: library_of(line, db) for line in lines}
    for (before, after), path in contents.drifts.items():
        found = drift_between(RunMoment.read(before, "before"), RunMoment.read(after, "after"), runs, stores)
        yield path, {"found": found, "task": "", "sides": [], "places": [], "shown": MOVES, "suspects": suspects_of(found, runs, stores)}


def _note(lines: Sequence[RunLine], contents: Contents, rollouts: int) -> str:
    """What the foot of every page says."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    steps = sum(1 for line in lines for _ in moments(line.path / "episodes"))
    listed, pages = sum(map(len, contents.tables.values())), len(contents.episodes)
    whole = listed == steps and pages == rollouts
    left = (
        ""
        if whole
        else f" In it are the lists of {listed:,} of {steps:,} steps and evaluations, and {pages:,} of {rollouts:,} rollouts: the latest."
    )
    uncompared = f" The runs are not compared: that is for {MOST} at most." if len(lines) > MOST else ""
    return f"A copy made on {made}, which nothing updates.{left}{uncompared}"
