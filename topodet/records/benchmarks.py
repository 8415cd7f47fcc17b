"""Text descriptions of benchmark records: what was measured, and on which machine."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def circumstances(record: Record) -> str:
    """Describe machine and versions."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"{record['machine']}; {versions}; {record['date']}"


def subject(record: Record) -> str:
    """Describe what a record measures."""
    s = record["settings"]
    if s["what"] == "stage":
        work = f"stage of {s['nodes']} nodes ({s['topology']}), {s['in_chs']} to {s['out_chs']} channels"
    else:
        work = s["arch"] if s["what"] == "network" else "Faster R-CNN, a training iteration"
    parts = [work, f"batch {s['batch']}", f"{s['size']} px", s["device"], s["dtype"]]
    parts += [s["memory_format"]] if s["memory_format"] != "contiguous" else []
    parts += ["torch.compile"] if s["compile"] else []
    # Older records without this setting used the default malloc.
    parts += ["malloc steady"] if s.get("malloc") == "steady" else []
    return ", ".join(parts)
