"""What to keep, from the figures: every number in it is one of a report's."""

from collections.abc import Iterator

from benchmarks.fidelity.words import Report, classes, each_of, error, span, stored

# An error of this much we call small: far below what a batch's gradient strays by itself.
ENOUGH = 0.05
TAILS = ("kd", "nkd", "dkd")
# Of the ks, those whose rest of the mass is spoken of.
_SHOWN = (10, 32, 100)


def advice(reports: dict[str, Report]) -> list[str]:
    """Sentences for the user, from the report with most classes, and from that with fewest where there are two."""
    ranked = sorted(reports.values(), key=lambda report: -report["teacher"]["classes"])
    if not ranked:
        return []
    many, few = ranked[0], ranked[-1]
    found = [*_top(many), *_dense(many)]
    if few is not many:
        found += _few(few)
    return [*found, *_dtypes(ranked), *_ranks(ranked), *_peers(ranked), *_exact(ranked)]


def _top(report: Report) -> Iterator[str]:
    """Which k."""
    ks = [int(k) for k in report["teacher"]["retained"]]
    parts = []
    for name in (n for n in TAILS if n in report["errors"]):
        small = [k for k in ks if (error(report, name, f"top{k}-float16") or 0) <= ENOUGH]
        way = f"top{small[0]}-float16" if small else "dense-float16"
        kept = str(small[0]) if small else "all of them"
        parts.append(f"{name} {kept} ({error(report, name, way):.2g}, {stored(report, way)})")
    usual = f" `--k 16`, the default: {each_of(report, TAILS, 'top16-float16')}." if 16 in ks else ""
    yield (
        "**KD, soft CE, NKD and DKD at temperature 1: keep the top k.** Of"
        f" {report['teacher']['classes']:,} classes the smallest k with an error of at most {ENOUGH:.0%} is:"
        f" {', '.join(parts)}.{usual}{_early(report)}"
    )


def _early(report: Report) -> str:
    """How the errors move as the student learns."""
    early, way = report["early"], "top16-float16"
    now = error(report, "kd", way)
    if way not in early["kd"] or now is None:
        return ""
    before = early["kd"][way]["median"]
    grows = "; it grows as the student comes nearer to the teacher, so leave some room" if before < now else ""
    return f" Of a student with {early['steps']} steps instead of {report['steps']} kd was off by {before:.2g}{grows}."


def _peers(reports: list[Report]) -> Iterator[str]:
    """What renormalising costs, or doesn't, and one bucket."""
    parts = []
    for report in reports:
        ks = [int(k) for k in report["teacher"]["retained"]]
        some = [k for k in ks if k in _SHOWN] or ks[-1:]
        each = []
        for k in some:
            way = f"top{k}-float16"
            figures = [report["errors"][name][way] for name in TAILS if way in report["errors"].get(name, {})]
            ratios = [figure["ratio"] for figure in figures if figure.get("ratio")]
            if ratios:
                bucket = report["bucket"][way]["median"] / figures[0]["student"]["median"]
                each.append(f"k = {k} {min(ratios):.1f} to {max(ratios):.1f} ({bucket:.1f})")
        parts += [f"{classes(report)}: {', '.join(each)}"] if each else []
    if parts:
        yield (
            "**The rest of the mass** is spread evenly over all other classes. Making the k sum to 1, as other formats"
            " do, has so many times the error of KD, NKD and DKD (in brackets: KD with all other classes as one):"
            f" {'; '.join(parts)}. An even spread gains where the rest is even; here{_next(reports[0])}."
        )


def _next(report: Report) -> str:
    """How uneven the rest is."""
    kept = report["teacher"]["retained"]
    if not {"10", "16"} <= kept.keys() or kept["10"] >= 1:
        return " it is small"
    share = (kept["16"] - kept["10"]) / (1 - kept["10"])
    rest = report["teacher"]["classes"] - 10
    return f" {share:.0%} of what the top 10 leave lies in the next 6 of {rest:,} classes"


def _dense(report: Report) -> Iterator[str]:
    """What needs all classes, and the cheapest way to have them."""
    names = [n for n, ways in report["errors"].items() if any(figure.get("refused") for figure in ways.values())]
    if not names or not report["teacher"]["retained"]:
        return
    k = max(int(k) for k in report["teacher"]["retained"])
    text = (
        f"**DIST, and any temperature but 1, need all classes.** From the top {k} they would be off by"
        f" {each_of(report, names, f'top{k}-float16')}, which is why kdpipe refuses. "
    )
    every = ["dense-float16", "pooled-int8+head", "pooled-float16+head"]
    there = [way for way in every if way in report["errors"][names[0]]]
    parts = [f"{_flags(way)} {stored(report, way)} ({span(report, names, way)})" for way in there]
    fit = [way for way in there if max(error(report, n, way) or 0 for n in names) <= ENOUGH]
    best = min(fit, key=lambda way: report["bytes"][way]["stored"], default="dense-float16")
    yield f"{text}A view then takes, with these errors: {'; '.join(parts)}. The smallest that is good: {_flags(best)}."


def _few(report: Report) -> Iterator[str]:
    """Where classes are few."""
    way, ks = "dense-float16", report["teacher"]["retained"]
    names = [n for n, ways in report["errors"].items() if way in ways]
    least = f"top{max(map(int, ks))}-float16" if ks else way
    yield (
        f"**Of few classes keep all of them.** With {report['teacher']['classes']}, `--targets dense` takes"
        f" {stored(report, way)} (errors {span(report, names, way)}), {_name(least)} {stored(report, least)}"
        f" ({span(report, [n for n in TAILS if n in names], least)}); the default, `--k 16`, keeps all where there"
        " are no more than 16."
    )


def _dtypes(reports: list[Report]) -> Iterator[str]:
    """int8 against float16."""
    for feature in ("pooled", "map"):
        parts, worst = [], 0.0
        for report in reports:
            names = [n for n, ways in report["errors"].items() if f"{feature}-int8" in ways]
            if not names:
                continue
            high = max(error(report, n, f"{feature}-int8") or 0 for n in names)
            worst = max(worst, high)
            each = (f"{d} {stored(report, w)} ({span(report, names, w)})" for d, w in _both(feature))
            parts.append(f"{classes(report)}: {', '.join(each)}")
        if parts:
            verdict = "int8 is enough" if worst <= ENOUGH else "int8 costs something: take float16 where bytes allow"
            what = "Pooled features" if feature == "pooled" else "Final maps"
            yield f"**{what}: {verdict}** (`--{feature} int8`). {'; '.join(parts)}."


def _ranks(reports: list[Report]) -> Iterator[str]:
    """Bases."""
    parts, worst = [], 0.0
    for report in reports:
        each = []
        for rank, share in report["teacher"]["explained"].items():
            way = f"map-int8-r{rank}"
            names = [n for n, ways in report["errors"].items() if way in ways]
            if names:
                each.append(
                    f"{rank} of {report['teacher']['map'][0]} ({share:.1%} of the variance), {stored(report, way)}:"
                    f" {span(report, names, way)}"
                )
                if 2 * int(rank) == report["teacher"]["map"][0]:
                    worst = max(worst, *(error(report, n, way) or 0 for n in names))
        parts += [f"{classes(report)}: {', '.join(each)}"] if each else []
    if parts:
        verdict = "half the channels do" if worst <= ENOUGH else "not if int8 maps of all channels fit"
        yield (
            f"**A basis for maps (`--feature-map-rank`): {verdict}.** Errors by rank, int8: {'; '.join(parts)}. What it"
            " leaves out is missing in every step, so look at the error, not at the variance."
        )


def _exact(reports: list[Report]) -> Iterator[str]:
    """What costs nothing."""
    parts = [f"{r['max_parity']:.2g} with {classes(r)}" for r in reports]
    steps = reports[0]["parity_steps"]
    yield (
        "**float32 fields are exact**, for every loss: the losses of a student with the teacher beside it and of"
        f" one from the cache, labels' terms included, differ over {steps} steps by at most {', '.join(parts)}."
    )


def _both(feature: str) -> list[tuple[str, str]]:
    return [(dtype, f"{feature}-{dtype}") for dtype in ("int8", "float16")]


def _flags(way: str) -> str:
    return "`--targets dense`" if way.startswith("dense") else f"`--pooled {way.removeprefix('pooled-')[:-5]}`"


def _name(way: str) -> str:
    return "all classes" if way.startswith("dense") else f"`--k {way.partition('-')[0][3:]}`"
