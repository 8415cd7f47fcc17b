"""A census of timm: the result of `connect(nodes="auto")` for every registered network, and whether it is exact."""

from __future__ import annotations

import gc
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise, zip_longest
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ConfigError
from ..models.connected import connect, runs
from ..models.connected.follow import Call, Sample, copy_network, follow
from ..records.markdown import replace_measured, table

Row = dict[str, Any]
# Words for sizes in the names of networks, ascending.
_SIZES = (
    *("zepto", "atto", "femto", "pico", "nano", "n", "xxtiny", "xtiny", "tiny", "t", "mini", "micro", "xxs", "xs"),
    *("small", "s", "little", "medium", "m", "mediumd", "base", "b", "so150m", "so400m", "large", "l", "xlarge", "xl"),
    *("huge", "giant", "gigantic", "enormous"),
)
PARAMETERS = 2_000_000_000
SECONDS = 600
SIDE = 96
EXACT = 1e-5  # largest share by which a connected network may differ


def in_order(names: Collection[str]) -> list[str]:
    """Order names so that any prefix is a broad sample: the smallest of each family first, then the next ones.

    A family is a timm module. Sizes are read from the names, so no network needs to be built.
    """
    families: dict[str, list[str]] = {}
    for name in sorted(names, key=_size):
        families.setdefault(family(name), []).append(name)
    return [name for row in zip_longest(*(families[key] for key in sorted(families))) for name in row if name]


def family(name: str) -> str:
    """Return the timm module that a network is defined in."""
    return timm.models._registry._model_to_module[name]


def _size(name: str) -> tuple:
    words = name.split("_")
    size = min((_SIZES.index(word) for word in words if word in _SIZES), default=len(_SIZES) // 2)
    return size, [int(number) for number in re.findall(r"\d+", name)], name


def survey(name: str, *, parameters: int = PARAMETERS, seconds: float = SECONDS, **options: Any) -> Row:
    """Build a network with random weights, connect it with "auto", and compare the two.

    Args:
        name: name of the network in timm.
        parameters, seconds: limits; a network that exceeds one is listed as not measured.
        options: arguments of `timm.create_model` that make it smaller.

    Returns:
        {"name", "family", "parameters", "input": its shape, "blocks": whether two blocks of one class follow each other
        that keep their shape, "forms", "runs", "edges", "difference" and "gradient": the largest difference of the
        outputs, and of the gradients of the input, as shares of the largest value, "float64": the same two, by name, in
        float64, if one is above `EXACT`, "reason" if it was not measured or not connected}; steps that were not reached
        are missing.
    """
    row: Row = {"name": name, "family": family(name)}
    try:
        with _limit(seconds):
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name, num_classes=10, **options).parameters())
            row["parameters"] = size
            if size > parameters:
                return {**row, "reason": f"not measured: it has more than {parameters / 1e6:g} M parameters"}
            model, root, sample = _small(name, options)
            row["input"] = ", ".join(" x ".join(map(str, x.shape)) for x in tree_leaves(sample))
            row["blocks"] = has_two_blocks(root)
            del root
            row |= compare(model, sample)
            if max(row["difference"], row["gradient"]) > EXACT:
                found = compare(model.double(), tree_map(lambda x: x.double() if x.is_floating_point() else x, sample))
                row["float64"] = {key: found[key] for key in ("difference", "gradient")}
            return row
    except TimeoutError:
        return {**row, "reason": f"not measured: it took more than {seconds:.0f} s of CPU time"}
    except ConfigError as error:
        return {**row, "reason": _shortened(str(error))}
    except Exception as error:  # any network may fail in any way; the table lists the error
        return {**row, "reason": _shortened(f"not measured: {type(error).__name__}: {error}")}


def _small(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, Call, Sample]:
    """Build a network for images of `SIDE` pixels if it can be built for them, see `_build`."""
    try:
        return _build(name, {"img_size": SIDE, **options})
    except TimeoutError:
        raise
    except Exception:  # most networks take no such argument; the others fail in many ways if it does not fit
        return _build(name, options)


def _build(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, Call, Sample]:
    """Return a network with random weights, its call on an image, and the image."""
    torch.manual_seed(0)
    # Only gradients of the input are compared; those of the parameters would take as much memory again.
    model = randomize(timm.create_model(name, num_classes=10, **options)).eval().requires_grad_(False)
    root, _, sample = follow(copy_network(model, share=True))
    return model, root, sample


def compare(model: nn.Module, sample: Sample) -> Row:
    """Connect a network with "auto" and compare it with the original.

    Args:
        model: in evaluation mode.
        sample: see `connect`.

    Returns:
        "forms", "runs", "edges", "difference" and "gradient", see `survey`.

    Raises:
        ConfigError: no part of it can be connected.
    """
    connected = connect(model, nodes="auto", sample=sample)
    firsts = [next(iter(blocks.values())) for blocks in runs(connected).values()]
    (output, slope), (expected, expected_slope) = _values(connected, sample), _values(model, sample)
    return {
        "forms": dict(Counter(block.link.run.form for block in firsts)),
        "runs": len(firsts),
        "edges": sum(block.wiring.topology.num_edges for block in firsts),
        "difference": _difference(output, expected),
        "gradient": _difference(slope, expected_slope),
    }


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Change a network's parameters and statistics, in place, so that no branch is 0 as after initialization."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            spread = parameter.std().nan_to_num() if parameter.ndim > 1 else 1.0
            parameter.add_(0.1 * torch.randn_like(parameter) * (spread or 0.2))
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def has_two_blocks(call: Call) -> bool:
    """Whether a module calls two composite modules of one class in a row that keep the shape of their input.

    This is weaker than the condition of `connect`: the second need not read the exact tensor of the first.
    """

    def keeps(one: Call) -> tuple | None:
        if not one.children or all(parameter.ndim < 2 for parameter in one.module.parameters()):
            return None
        shapes = {tuple(x.shape) for x, _ in one.outputs.values()}
        return next((tuple(x.shape) for x, _ in one.inputs.values() if tuple(x.shape) in shapes), None)

    blocks = [(type(child.module), shape) for child in call.children if (shape := keeps(child)) is not None]
    return any(a == b for a, b in pairwise(blocks)) or any(map(has_two_blocks, call.children))


def _values(model: nn.Module, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """Return a network's outputs, and the gradients of its inputs of a random function of them."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in tree_leaves(sample)]
    outputs = [x for x in tree_leaves(model(*inputs)) if isinstance(x, Tensor)]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator) for x in outputs]
    sum((x * weight).sum() for x, weight in zip(outputs, weights)).backward()
    return [x.detach() for x in outputs], [x.grad for x in inputs if x.grad is not None]


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference as a share of the largest value; 1 if there are only zeros to compare."""
    scale = max((x.abs().max().item() for x in theirs), default=0.0)
    largest = max(((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)), default=0.0)
    return largest / scale if scale else 1.0


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in this thread after some seconds of CPU time, however busy the machine is."""

    def stop(*_: object) -> None:
        raise TimeoutError

    gradients = torch.is_grad_enabled()
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        # A network's initialization is full of no_grad: the error may come while one is entered or left.
        torch.set_grad_enabled(gradients)


def take(
    names: Sequence[str], done: Mapping[str, Row], keep: Callable[[Row], None], *, minutes: float, **limits: Any
) -> None:
    """Survey networks one by one, except those already done, until the time is over.

    Args:
        names: in the order in which they are taken.
        done: rows of an earlier census, by name.
        keep: called with each new row.
        minutes: time after which no further network is started.
        limits: see `survey`.
    """
    end = time.monotonic() + 60 * minutes
    for name in names:
        if time.monotonic() > end:
            return
        if name not in done:
            keep(survey(name, **limits))
            gc.collect()  # modules and their hooks refer to each other, so a network outlives its last use


def totals(rows: Collection[Row]) -> dict[str, Any]:
    """Return the counts of a census."""
    measured = [row for row in rows if not row.get("reason", "").startswith("not measured")]
    connected = [row for row in measured if "edges" in row]
    with_blocks = [row for row in measured if row.get("blocks")]
    return {
        "taken": len(rows),
        "measured": len(measured),
        "connected": len(connected),
        "with_blocks": len(with_blocks),
        "connected_with_blocks": sum("edges" in row for row in with_blocks),
        "exact": sum(row["difference"] <= EXACT for row in connected),
        "difference": max((row["difference"] for row in connected), default=0.0),
        "gradient": max((row["gradient"] for row in connected), default=0.0),
    }


def update_page(page: str, record: Mapping[str, Any]) -> str:
    """Return docs/census.md with its measured part regenerated from the record.

    Args:
        page: the text, with the markers of `replace_measured`.
        record: that of tools/census.py: {"networks": rows of `survey`, "registered": how many names timm has, "timm",
            "versions", "date", "commits"}.
    """
    rows = sorted(record["networks"], key=lambda row: (row["family"], row["name"]))
    counts = totals(rows)
    share = counts["connected_with_blocks"] / max(1, counts["with_blocks"])
    so_far = "" if counts["taken"] == record["registered"] else " so far"
    text = (
        f"Of the {record['registered']} names that timm {record['timm']} registers, {counts['taken']} were taken"
        f"{so_far}, of {len({row['family'] for row in rows})} families, and {counts['measured']} of these measured. "
        f"{counts['connected']} connect. {counts['with_blocks']} have two blocks of one class that keep their shape; "
        f"of these {counts['connected_with_blocks']} connect, {share:.1%}. {counts['exact']} of the "
        f"{counts['connected']} equal the original to 1e-5; the largest difference of an output is "
        f"{counts['difference']:.1e}, of a gradient {counts['gradient']:.1e}."
    )
    rounded = [row for row in rows if "float64" in row]
    if rounded:
        text += " Those that differ by more than 1e-5 were compared once more in float64: "
        text += "; ".join(
            f"{row['name']} {_exponential(row['gradient'])}, in float64 {_exponential(row['float64']['gradient'])}"
            for row in rounded
        )
        text += "."
    where = f"{record['date']}, torch {record['versions']['torch']}, commit {', '.join(record['commits'])}"
    families = {key: list(group) for key, group in groupby(rows, key=lambda row: row["family"])}
    networks = [_cells(row) for row in rows if "edges" in row]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "edges" not in row:
            reasons.setdefault(row["reason"], []).append(row["name"])
    parts = [
        text,
        f"{where}: record [census](../records/census.json), `{record['command']}`.",
        "## Families",
        table(
            ("family", "names", "connect", "residuals", "blocks", "both", "largest difference"),
            [_family_cells(key, group) for key, group in families.items()],
        ),
        "## Networks that connect",
        table(("network", "parameters", "form", "runs", "edges", "output", "gradient"), networks),
    ]
    if reasons:
        # As a list, because sentences do not fit into a column.
        parts += ["## Not connected", "\n".join(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items())]
    return replace_measured(page, "\n\n".join(parts), path="docs/census.md")


def _family_cells(family: str, rows: Sequence[Row]) -> tuple[str, ...]:
    forms = Counter(tuple(sorted(row["forms"])) for row in rows if "edges" in row)
    largest = max((row["difference"] for row in rows if "edges" in row), default=None)
    by_form = (str(forms[form] or "") for form in (("residuals",), ("blocks",), ("blocks", "residuals")))
    return family, str(len(rows)), str(forms.total()), *by_form, "" if largest is None else _exponential(largest)


def _cells(row: Row) -> tuple[str, ...]:
    measured = (_exponential(row[key]) for key in ("difference", "gradient"))
    parameters = f"{row['parameters'] / 1e6:.1f} M"
    return row["name"], parameters, ", ".join(row["forms"]), str(row["runs"]), str(row["edges"]), *measured


def _exponential(share: float) -> str:
    return f"{share:.0e}" if share else "0"


def _shortened(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
