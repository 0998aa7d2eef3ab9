"""An inspection as tables for a terminal."""

from collections import Counter

from tfmusic.console import format_table
from tfmusic.reports.inspection import FAULTS, Inspection, length_quantiles

_BAR = 30  # columns of the longest bar
_SHOWN_LABELS = 60
_SHOWN_PAIRS = 15
_SHOWN_FAULTS = 40


def format_inspection(found: Inspection, names: dict[str, str]) -> str:
    """Returns all tables; `names` is what stands for a label on pictures, where that is not the label itself."""
    parts = [_summary(found), _labels(found, names), _lengths(found)]
    if max(found.labels_per_track) > 1:
        parts += [_labels_per_track(found), _pairs(found)]
    return "\n\n".join([*parts, _faults(found)])


def _summary(found: Inspection) -> str:
    what = "tags" if found.kind == "multi" else "labels"
    splits = Counter(item.split for item in found.items if item.split)
    hours = found.seconds.sum() / 3600
    line = f"{found.name}: {len(found.items):,} tracks, {len(found.counts)} {what}, {hours:,.2f} hours"
    parts = ", ".join(f"{split} {splits[split]:,}" for split in found.splits)
    return f"{line}\nsplits: {parts}" if parts else line


def _labels(found: Inspection, names: dict[str, str]) -> str:
    counts, splits = found.counts, found.splits if len(found.splits) <= 3 else ()
    by_split = [found.counts_of(split) for split in splits]
    most = max(counts.values())
    rows = [
        (
            *((names[label],) if names else ()),
            label,
            count,
            f"{100 * count / len(found.items):.1f} %",
            *(some[label] for some in by_split),
            "#" * max(round(_BAR * count / most), 1),
        )
        for label, count in list(counts.items())[:_SHOWN_LABELS]
    ]
    header = (*(("in pictures",) if names else ()), "label", "tracks", "share", *splits, "")
    more = len(counts) - len(rows)
    return format_table(rows, header) + (f"\n... {more} rarer labels" if more > 0 else "")


def _lengths(found: Inspection) -> str:
    quantiles = length_quantiles(found.seconds)
    if not quantiles:
        return "lengths: no track could be read"
    return format_table([tuple(quantiles.values())], tuple(f"{name} (s)" for name in quantiles), digits=1)


def _labels_per_track(found: Inspection) -> str:
    counts = found.labels_per_track
    most = max(counts.values())
    rows = [(n, count, "#" * max(round(_BAR * count / most), 1)) for n, count in counts.items()]
    mean = sum(n * count for n, count in counts.items()) / len(found.items)
    return format_table(rows, ("labels a track", "tracks", "")) + f"\nmean {mean:.2f}"


def _pairs(found: Inspection) -> str:
    counts = found.counts
    rows = [
        (one, other, count, f"{100 * count / min(counts[one], counts[other]):.0f} %")
        for (one, other), count in list(found.pairs.items())[:_SHOWN_PAIRS]
    ]
    return format_table(rows, ("label", "stands with", "tracks", "of the rarer"))


def _faults(found: Inspection) -> str:
    if not found.faults:
        return "faults: none"
    counts = Counter(fault.kind for fault in found.faults)
    lines = [f"{fault.kind} {fault.track_id}: {fault.reason}" for fault in found.faults[:_SHOWN_FAULTS]]
    if len(found.faults) > _SHOWN_FAULTS:
        lines.append(f"... {len(found.faults) - _SHOWN_FAULTS} more")
    return "\n".join(["faults: " + ", ".join(f"{counts[kind]} {kind}" for kind in FAULTS if counts[kind]), *lines])
